"""The checks of one node by itself: products, memory, transfers, loopback, all-to-all inside the node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.diagnose.checks import NodeReport, judge
from megascale.diagnose.expected import read_baseline, table_floors, write_baseline
from megascale.diagnose.worker_client import Worker, WorkerGoneError, WorkerInfo, usable_cpus

_CPU_RANKS: Final = 2
_SECONDS: Final = 0.3
_ALL_TO_ALL_SECONDS: Final = 0.1
_DEADLINES_S: Final = {"device": 25.0, "all-to-all": 20.0}
_COLLECTIVE_TIMEOUT_S: Final = 10.0

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Options:
    """How a node is checked.

    Attributes:
        ranks: GPUs to expect and use, or processes of the all-to-all on a CPU; 0 = all GPUs, or 2.
        threads: CPU threads of the products; 0 = all usable CPUs.
        fault: injected into the worker, for tests and demonstrations; "" = none.
    """

    ranks: int = 0
    threads: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the checks measured; not yet judged.

    Attributes:
        answers: per rank and check, see `checks.judge`.
    """

    hardware: str
    answers: list[dict[str, Any]]


async def examine(
    worker: Worker, info: WorkerInfo, options: Options, address: str, progress: Progress = lambda _: None
) -> Findings:
    """Run all checks of a node by itself, at most 51 s; ranks that fail or hang are answers too.

    Args:
        address: the node's own; its loopback and all-to-all traffic goes there.
    """
    answers: list[dict[str, Any]] = []
    ranks = options.ranks or info.gpus or _CPU_RANKS
    if info.gpus and ranks > info.gpus:
        seen = f"{info.gpus} of {ranks} GPUs are visible"
        answers.append({"op": "gpus", "rank": info.gpus, "error": seen})
        ranks = info.gpus
    fields = {"address": address, "threads": options.threads or usable_cpus()}
    devices = f"{info.gpus} GPUs" if info.gpus else "the CPU"
    progress(f"products, memory and transfers of {devices}")
    measured = await _ask(worker, "device", ranks=ranks if info.gpus else 1, seconds=_SECONDS, **fields)
    answers += measured
    if ranks > 1:
        progress(f"all-to-all of {ranks} ranks")
        fields |= {"host": address, "size": ranks, "timeout": _COLLECTIVE_TIMEOUT_S}
        answers += await _ask(worker, "all-to-all", ranks=ranks, seconds=_ALL_TO_ALL_SECONDS, **fields)
    devices = next((answer["device"] for answer in measured if "device" in answer), "cpu")
    return Findings(info.cpu if devices == "cpu" else devices, answers)


async def _ask(worker: Worker, op: str, **fields: object) -> list[dict[str, Any]]:
    try:
        answers = await worker.ask(op, fields, deadline_s=_DEADLINES_S[op])
    except WorkerGoneError as error:
        answers = [{"rank": 0, "error": str(error)}]
    return [{"op": op, **answer} for answer in answers]


async def check_node(
    node: str,
    options: Options,
    *,
    baseline: Path | None = None,
    record: Path | None = None,
    progress: Progress = lambda _: None,
) -> NodeReport:
    """Check this node alone; the report holds its figures against the table, or against a baseline.

    Raises:
        UnreachableError: the checks cannot be started at all.
        InputError: the baseline cannot be read, is of other hardware, or cannot be written.
    """
    begin = time.monotonic()
    recorded = read_baseline(baseline) if baseline else None
    progress("importing torch")
    async with Worker(options.fault) as worker:
        info = await worker.start()
        found = await examine(worker, info, options, "127.0.0.1", progress)
    if recorded:
        floors = recorded.floors_on(found.hardware)
    else:
        floors = table_floors(found.hardware) if info.gpus else {}
    checks = judge(found.answers, floors, needs_floor=bool(info.gpus or recorded))
    if record:
        write_baseline(record, found.hardware, checks)
    return NodeReport(node, found.hardware, tuple(checks), time.monotonic() - begin)
