"""Launches over ranks that do not die, launches that fail half-way, and orders of attempts that are over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import processes
from megascale.agent import ranks as module
from megascale.agent.config import AgentConfig
from megascale.agent.processes import process_state
from megascale.agent.ranks import LateRanksError, Ranks
from megascale.agent.zygote_client import ZygoteError
from megascale.engine.context import RankLaunch
from megascale.errors import FencedError
from megascale.job import TrainingJob, parse_job
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: q}
spec:
  nodes: 1
  ranksPerNode: 2
  steps: 1
  runtime:
    megatron:
      model: {preset: tiny}
      data: {path: d, sequenceLength: 8, microBatch: 1, globalBatch: 4}
"""


class Zygote:
    """Starts a sleeping process for each rank, unless that rank is in `refuses`."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.refuses: set[int] = set()
        self.stores: list[int] = []

    async def fork_rank(self, launch: RankLaunch, _log: Path) -> int:
        if launch.rank in self.refuses:
            raise ZygoteError("the zygote died")
        self.pids.append(os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ))  # noqa: ASYNC221
        return self.pids[-1]

    async def fork_store(self, _host: str) -> tuple[int, int]:
        self.stores.append(os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ))  # noqa: ASYNC221
        return self.stores[-1], 29


class Stage:
    """A node of two ranks; the exits that it reports are in `told`."""

    def __init__(self, folder: Path) -> None:
        job = parse_job(MANIFEST)

        class Known:
            async def get(self, _revision: str) -> TrainingJob:
                return job

        self.told: list[pb.RankExit] = []
        self.changed = asyncio.Event()
        self.zygote = Zygote()
        config = AgentConfig.local(RunDir(folder).root, "n0")
        self.ranks = Ranks(config, cast(Any, self.zygote), cast(Any, Known()), self._take)

    def _take(self, report: pb.RankExit) -> None:
        self.told.append(report)
        self.changed.set()

    async def launch(self, attempt: int) -> None:
        await self.ranks.launch(3, pb.Launch(attempt=attempt, nodes=1, store_host="127.0.0.1", store_port=1))


def play(folder: Path, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage(folder)
        async with asyncio.timeout(30.0):
            try:
                await scenario(stage)
            finally:
                await stage.ranks.kill(10**6, 10.0)

    asyncio.run(main())


def test_a_launch_over_ranks_that_do_not_die_fails_and_their_end_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REAP_S", 0.05)
    deaf = True
    send = signal.pidfd_send_signal

    def sometimes(pidfd: int, number: int) -> None:
        if not deaf:  # a process in an uninterruptible call does not react to SIGKILL
            send(pidfd, number)

    monkeypatch.setattr(processes.signal, "pidfd_send_signal", sometimes)

    async def scenario(stage: Stage) -> None:
        nonlocal deaf
        await stage.launch(1)
        first, second = stage.zygote.pids
        with pytest.raises(
            LateRanksError, match=rf"ranks of attempt 1 .*0 \(pid {first}\), 1 \(pid {second}\)"
        ):
            await stage.launch(2)
        assert (stage.ranks.attempt, stage.zygote.pids) == (1, [first, second])
        assert await stage.ranks.kill(1, 0.05) == [0, 1]
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
        deaf = False
        await stage.ranks.ended()
        await stage.launch(2)
        assert (stage.ranks.attempt, stage.ranks.alive, stage.told) == (2, [0, 1], [])

    play(tmp_path, scenario)


def test_the_end_of_a_child_concerns_its_own_entry_only(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch(1)
        old = stage.ranks._ranks.pop(0)  # as if its entry had been replaced
        await stage.launch(2)
        old.child.kill()
        await old.child.ended.wait()
        assert stage.told == []
        os.kill(stage.zygote.pids[2], signal.SIGTERM)
        await stage.changed.wait()
        assert [(report.rank, report.attempt) for report in stage.told] == [(0, 2)]

    play(tmp_path, scenario)


def test_a_launch_that_failed_half_way_leaves_nothing_and_is_carried_out_when_repeated(
    tmp_path: Path,
) -> None:
    async def scenario(stage: Stage) -> None:
        stage.zygote.refuses = {1}
        for _ in range(2):
            with pytest.raises(ZygoteError):
                await stage.launch(1)
            assert stage.ranks.alive == []
        assert [process_state(pid) for pid in stage.zygote.pids] == ["", ""]
        stage.zygote.refuses = set()
        await stage.launch(1)
        await stage.launch(1)
        assert (stage.ranks.alive, len(stage.zygote.pids), stage.told) == ([0, 1], 4, [])

    play(tmp_path, scenario)


def test_orders_of_attempts_that_are_over_are_refused(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch(3)
        with pytest.raises(FencedError, match="attempt 2 is over: attempt 3 is the next"):
            await stage.launch(2)
        with pytest.raises(FencedError, match="a store of attempt 2 was asked for after attempt 3"):
            await stage.ranks.host_store(2)
        assert (stage.ranks.alive, stage.ranks.attempt, stage.zygote.stores) == ([0, 1], 3, [])
        assert await stage.ranks.kill(3, 10.0) == []
        await stage.launch(3)  # repeated: it was carried out, and then killed
        assert stage.ranks.alive == []
        await stage.ranks.kill(5, 10.0)
        with pytest.raises(FencedError, match="attempt 5 is over: attempt 6 is the next"):
            await stage.launch(5)
        await stage.launch(6)
        assert stage.ranks.alive == [0, 1]

    play(tmp_path, scenario)


def test_a_store_that_ends_before_the_launch_fails_it(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.ranks.host_store(1)
        os.kill(stage.zygote.stores[0], signal.SIGKILL)
        while process_state(stage.zygote.stores[0]):  # noqa: ASYNC110 - reaped by the agent's watch
            await asyncio.sleep(0.01)
        with pytest.raises(ZygoteError, match="the store of attempt 1 ended before the ranks were started"):
            await stage.launch(1)
        assert (stage.zygote.pids, stage.told) == ([], [])
        await stage.ranks.host_store(1)
        await stage.launch(1)
        assert stage.ranks.alive == [0, 1]

    play(tmp_path, scenario)


@pytest.mark.parametrize("stepped", [[], [0]], ids=["none-has-stepped", "one-has-stepped"])
def test_a_store_that_ends_while_ranks_need_it_is_told_as_an_exit(tmp_path: Path, stepped: list[int]) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.ranks.host_store(1)
        await stage.launch(1)
        for rank in stepped:
            stage.ranks._ranks[rank].file.update(first_step_at=1.0)
        os.kill(stage.zygote.stores[0], signal.SIGKILL)
        await stage.changed.wait()
        (report,) = stage.told
        assert (report.rank, report.attempt, report.exit_code) == (len(stepped), 1, 1)
        reason = json.loads(report.exit_report)
        assert reason["type"] == "DistStoreError"
        assert "the store of attempt 1" in reason["message"]
        assert "was killed by signal 9 before the first step" in reason["message"]
        assert stage.ranks.exits == [report]  # a new stream to the driver begins with it
        assert await stage.ranks.kill(1, 10.0) == []
        assert len(stage.told) == 1

    play(tmp_path, scenario)


def test_a_store_that_nobody_needs_ends_without_a_word(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        for attempt in (1, 2):
            await stage.ranks.host_store(attempt)
            await stage.launch(attempt)  # which ends the ranks of the attempt before
        for rank in (0, 1):
            stage.ranks._ranks[rank].file.update(first_step_at=1.0)
        os.kill(stage.zygote.stores[1], signal.SIGKILL)
        while process_state(stage.zygote.stores[1]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await stage.ranks.kill(2, 10.0)  # of a store that still ran, as of its ranks, nothing is told either
        assert stage.told == []

    play(tmp_path, scenario)
