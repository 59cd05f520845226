"""A kernel log that cannot be read delays no heartbeat."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

from megascale.agent.agent import Agent
from megascale.agent.config import AgentConfig
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: q}
spec:
  steps: 1
  runtime: {command: {args: [sleep, "60"]}}
"""


def test_a_kernel_log_that_hangs_delays_no_report(tmp_path: Path, monkeypatch: Any) -> None:
    began, go = threading.Event(), threading.Event()

    class Stuck:
        def new_events(self) -> list[pb.HardwareEvent]:
            began.set()
            assert go.wait(20.0)
            return []

    async def main() -> None:
        run = RunDir(tmp_path)
        run.job_file.write_text(MANIFEST)
        config = AgentConfig(run, "n0", run.job_file, run.driver_file, run.token_file)
        agent = Agent(config, LogContext("agent"))
        agent._kernel_log = cast(Any, Stuck())
        told = asyncio.Event()
        ready = asyncio.Event()

        def send(message: pb.AgentMessage) -> None:
            if message.HasField("report") and began.is_set():
                told.set()

        async def prepare() -> None:
            ready.set()

        monkeypatch.setattr(agent._link, "send", send)
        monkeypatch.setattr(agent, "_prepare", prepare)
        monkeypatch.setattr(agent._reaper, "watch", lambda: None)
        monkeypatch.setattr(agent, "_report_s", 0.01)
        async with asyncio.timeout(15.0):
            serving = asyncio.create_task(agent._serve())
            await asyncio.to_thread(began.wait, 10.0)
            monkeypatch.setattr(agent._ranks, "report", lambda: pb.Report(ranks=[pb.RankStatus(pid=7)]))
            await told.wait()
            go.set()
            agent._leaving.set()
            await serving

    try:
        asyncio.run(main())
    finally:
        go.set()
