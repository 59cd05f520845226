"""Events per second that the core processes at 1,536 nodes x 8 ranks, and its memory per node.

    python benchmarks/core.py [--nodes 1536]

Most events are heartbeats: every node reports its 8 ranks once per period. The other rows are rare, large
events. Times are processor time.
Writes `benchmarks/results/core-<date>.md`.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from report import write_result

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core

RANKS, NOW = 8, 1_700_000_000.0
_ROUNDS = 10


def _progress(rank: int, step: int, at: float) -> ev.RankProgress:
    return ev.RankProgress(
        rank,
        step=step,
        phase="forward",
        progress_at=at,
        step_seconds=6.3,
        groups_at=NOW + 1,
        loaded_at=NOW + 2,
        first_step_at=NOW + 3,
    )


def _reports(nodes: int, step: int, at: float) -> list[ev.NodeReport]:
    return [
        ev.NodeReport(
            f"node-{node}",
            f"node-{node}/1",
            1,
            tuple(_progress(node * RANKS + rank, step, at) for rank in range(RANKS)),
        )
        for node in range(nodes)
    ]


def running_core(nodes: int) -> Core:
    """A core whose job of `nodes` nodes is past its first step."""
    core = Core(Policy(nodes=nodes, spare_nodes=0, min_nodes=nodes, ranks_per_node=RANKS, steps=10**9))
    core.step(ev.DriverStarted(1), NOW)
    launch: fx.Launch | None = None
    for node in range(nodes):
        for effect in core.step(ev.NodeJoined(f"node-{node}", f"node-{node}/1"), NOW):
            launch = effect if isinstance(effect, fx.Launch) else launch
    if launch is None:
        raise RuntimeError("the core did not launch")
    core.step(ev.EffectDone(launch.effect_id), NOW + 1)
    for report in _reports(nodes, 1, NOW + 3):
        core.step(report, NOW + 3)
    return core


def _timed(action: Callable[[], int]) -> tuple[int, float]:
    begun = time.process_time()
    done = action()
    return done, time.process_time() - begun


def measure(nodes: int) -> dict[str, Any]:
    tracemalloc.start()
    core = running_core(nodes)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows: dict[str, Any] = {"nodes": nodes, "ranks": nodes * RANKS, "bytesPerNode": round(held / nodes)}

    def heartbeats() -> int:
        for number in range(_ROUNDS):
            at = NOW + 10 + 2.0 * number
            for report in batches[number]:
                core.step(report, at)
        return _ROUNDS * nodes

    batches = [_reports(nodes, 2 + n // 3, NOW + 10 + 2.0 * n) for n in range(_ROUNDS)]
    done, spent = _timed(heartbeats)
    rows["beatsPerSecond"] = round(done / spent)
    rows["ranksPerSecond"] = round(done * RANKS / spent)

    def summaries() -> int:
        for number in range(200):
            at = NOW + 100 + number
            core.step(ev.JobReport(1, _progress(0, 10 + number, at), quiet_until=at + 60), at)
        return 200

    done, spent = _timed(summaries)
    rows["jobReportsPerSecond"] = round(done / spent)
    done, spent = _timed(lambda: len([core.snapshot() for _ in range(5)]))
    rows["snapshotMs"] = round(1000 * spent / done, 2)
    rows["recordBytes"] = len(json.dumps(core.snapshot()))
    crash = ev.RankExited("node-7", "node-7/1", 1, 56, signal=11, at=NOW + 400)
    begun = time.process_time()
    effects = core.step(crash, NOW + 400)
    rows["crashDecidedMs"] = round(1000 * (time.process_time() - begun), 2)
    kill = next(effect for effect in effects if isinstance(effect, fx.Kill))
    begun = time.process_time()
    effects = core.step(ev.EffectDone(kill.effect_id), NOW + 405)
    rows["relaunchDecidedMs"] = round(1000 * (time.process_time() - begun), 2)
    if not any(isinstance(effect, fx.Launch) for effect in effects):
        raise RuntimeError("the core did not launch again")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1536)
    rows = measure(parser.parse_args().nodes)
    for name, value in rows.items():
        print(f"{name:22} {value:,}")
    table = "\n".join(f"| {name} | {value:,} |" for name, value in rows.items())
    write_result("core", f"| figure | value |\n|---|---|\n{table}")


if __name__ == "__main__":
    main()
