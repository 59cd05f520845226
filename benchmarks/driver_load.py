"""CPU and memory of one driver with 1,536 nodes x 8 ranks over TLS, heartbeats at 5 s.

    python benchmarks/driver_load.py [--nodes 1536] [--seconds 60]

The driver is the real program: gRPC server with TLS, core, event log, job record. Agents are streams in
another process, one connection each, with simulated ranks that make steps. The steady state is measured once
all nodes train: CPU seconds of the driver process per second, which other load on the machine does not
change, and its resident memory. Writes `benchmarks/results/driver_load-<date>.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import psutil
from report import write_result

from megascale.agent.config import AgentConfig
from megascale.driver.driver import Driver
from megascale.driver.listener import LocalListener, bind
from megascale.driver.ports import DriverPorts
from megascale.driver.record import LocalRecord
from megascale.driver.store_log import StoreLog
from megascale.fleet.base import Health, SlotEvent
from megascale.job import load_job
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust, read_address

_ROOT = Path(__file__).parents[1]
RANKS, HEARTBEAT_S, STEP_S, NAME = 8, 5, 6.3, "driver.load.megascale"


class _NoFleet:
    """Nodes come by themselves."""

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None: ...

    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None: ...

    async def release(self, node: str) -> None: ...

    async def restart(self, effect_id: str, node: str) -> None: ...

    async def quarantine(self, node: str, incident: str) -> None: ...

    def labels(self, node: str) -> dict[str, str]:  # noqa: ARG002 - where made-up nodes are
        return {}

    async def probe(self, node: str) -> Health:
        return Health(healthy=None, detail=f"{node} is made up")

    async def close(self) -> None: ...


class _TlsListener(LocalListener):
    """The tokens of a local run over TLS."""

    def __init__(self, run: RunDir, key: bytes, certificate: bytes) -> None:
        super().__init__(run)
        self._pair = (key, certificate)

    async def open(self, server: grpc.aio.Server) -> str:
        return bind(server, "127.0.0.1", grpc.ssl_server_credentials([self._pair]))


def _manifest(nodes: int) -> str:
    return json.dumps(
        {
            "apiVersion": "megascale.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "load"},
            "spec": {
                "nodes": nodes,
                "ranksPerNode": RANKS,
                "spareNodes": 0,
                "steps": 10**6,
                "runtime": {"command": {"args": ["python", "none.py"]}},
                "health": {"heartbeatSeconds": HEARTBEAT_S},
            },
        }
    )


async def _serve(folder: Path) -> None:
    """The driver process."""
    from megascale_operator.driver.certificate import ServerKey
    from megascale_operator.tls.authority import Authority

    authority, key = Authority.create(datetime.now(UTC)), ServerKey(NAME)
    certificate = authority.sign(key.request_pem, NAME, datetime.now(UTC))
    (folder / "ca.crt").write_text(authority.certificate_pem)
    run = RunDir(folder)
    listener = _TlsListener(run, key.private_pem, certificate.encode())
    log = StoreLog(str(folder / "store"))
    ports = DriverPorts(LocalRecord(run, "load"), _NoFleet(), listener, log, background_services=(log,))
    driver = await Driver.take_over(run, load_job(run.job_file), ports)

    async def tell() -> None:
        while True:
            await asyncio.sleep(1.0)
            (folder / "stage").write_text(str(driver.core.record.state))

    telling = asyncio.create_task(tell())
    await driver.run()
    telling.cancel()


async def _play(folder: Path, nodes: int) -> None:
    """The agents' process."""
    from simulated.agent import SimulatedAgent
    from simulated.world import Pace, World

    run = RunDir(folder)
    world = World(Pace(step_s=STEP_S), 10**6)
    trust = Trust(folder / "ca.crt", NAME)
    agents = []
    for number in range(nodes):
        name = f"node-{number}"
        run.renew_agent_token(name)
        files = (run.job_file, run.driver_file, run.agent_token_file(name))
        config = AgentConfig(run, name, *files, trust=trust)
        agents.append(asyncio.create_task(SimulatedAgent(config, world, RANKS, HEARTBEAT_S).run()))
        if number % 32 == 31:
            await asyncio.sleep(0.1)
    await asyncio.gather(*agents)


def _until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"driver_load: never {what}")
        time.sleep(0.2)


def _measure(folder: Path, nodes: int, seconds: float) -> dict[str, Any]:
    run = RunDir(folder)
    run.root.mkdir(parents=True, exist_ok=True)
    run.job_file.write_text(_manifest(nodes))
    this = [sys.executable, __file__, "--folder", str(folder), "--nodes", str(nodes)]
    driver = subprocess.Popen([*this, "--serve"])
    agents = None
    try:
        _until(lambda: read_address(run.driver_file), 60.0, "announced")
        began = time.monotonic()
        agents = subprocess.Popen([*this, "--play"])
        stage = folder / "stage"
        _until(lambda: stage.exists() and stage.read_text() == "running", 600.0, "all nodes in training")
        joined_s = time.monotonic() - began
        time.sleep(2 * HEARTBEAT_S)
        process = psutil.Process(driver.pid)
        log = folder / "store" / "events" / "1.jsonl"
        before, size, start = process.cpu_times(), log.stat().st_size, time.monotonic()
        time.sleep(seconds)
        after, wall = process.cpu_times(), time.monotonic() - start
        spent = after.user + after.system - before.user - before.system
        connections = sum(1 for c in process.net_connections("tcp") if c.status == "ESTABLISHED")
        memory = process.memory_info().rss / 2**20
        logged = (log.stat().st_size - size) / wall / 1024
    finally:
        for child in (agents, driver):
            if child is not None:
                child.kill()
                child.wait()
    return {
        "nodes": nodes,
        "ranks": nodes * RANKS,
        "TLS connections": connections,
        "heartbeats a second": round(nodes / HEARTBEAT_S, 1),
        "driver CPU, share of a core": f"{spent / wall:.1%}",
        "driver CPU a heartbeat": f"{spent / wall / (nodes / HEARTBEAT_S) * 1e6:.0f} us",
        "driver memory": f"{memory:.0f} MiB",
        "event log": f"{logged:.0f} KiB/s",
        "load average of the machine": f"{os.getloadavg()[0]:.0f}",
        "all joined and training after": f"{joined_s:.0f} s (agents share the machine)",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1536)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the measurement")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(_ROOT / "tests" / "kube" / "support"), str(_ROOT / "operator")]
    if options.serve:
        asyncio.run(_serve(options.folder))
    elif options.play:
        asyncio.run(_play(options.folder, options.nodes))
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = _measure(Path(folder) / "load", options.nodes, options.seconds)
        rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
        body = f"| figure | value |\n|---|---|\n{rows}"
        print(body)
        print(f"written to {write_result('driver_load', body)}")


if __name__ == "__main__":
    main()
