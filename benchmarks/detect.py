"""Straggler detection against z-score, MAD and Mahalanobis baselines on the same traces.

    python benchmarks/detect.py [--traces 36] [--false-alarm-hours 500] [--json]

Ours is `megascale.core.stats`: `analyze` (whole trace, every class) and `StragglerDetector` (online,
slow nodes). The baselines convict a rank whose forward+backward stands out from all ranks of its stage,
in 4 of 5 windows of 8 steps (the same persistence as ours), by more than 3 standard deviations
(z-score), 3.5 robust ones (MAD, Iglewicz and Hoaglin) or, over the vector of all segments, the 0.999
quantile of chi-square (Mahalanobis, the baseline of Minder). Intervals are Wilson 95%, for the rate of
false suspicions exact Poisson. All traces are synthetic: figures say how the detectors compare, not how a
fleet behaves. The detectors were tuned on traces.py; rows "(other laws)" are of traces_other.py. Other seeds
of that generator were used to find weaknesses (heavy tails taken for pauses, file systems that stall all at
once); of the seeds used here only the misses of "ours online" were inspected.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))
import traces
import traces_other

from megascale.core.stats.online import StragglerDetector
from megascale.core.stats.robust import first_run, window_medians
from megascale.core.stats.stragglers import analyze
from megascale.core.stats.trace import Floats, Ints, Trace
from megascale.core.stats.verdicts import StragglerVerdict

Flags = npt.NDArray[np.bool_]

SHAPES: Final = (
    traces.Shape(),
    traces.Shape(1, 32, 1, 8),
    traces.Shape(4, 4, 2, 4),
    traces.Shape(1, 8, 1, 2),
    traces.Shape(2, 16, 2, 8),
    traces.Shape(1, 4, 1, 1),
)
WAITS: Final[tuple[traces.Waits, ...]] = ("stage", "all", "pipeline")
SLOW: Final = ("slow_node", "slow_rank")
WINDOW: Final = 8
STEP_SECONDS: Final = (
    5.0  # for node-hours of the false-alarm runs: a step of a large job (MegaScale 6.3 s at 12,288)
)
# 0.999 quantile of chi-square by degrees of freedom
CHI_SQUARE: Final = {5: 20.52, 6: 22.46, 7: 24.32}
SEGMENTS: Final = ("forward", "backward", "allreduce", "send", "recv")


@dataclass(slots=True)
class Score:
    """Counts of one detector on one class; `delays` in steps after the onset."""

    hits: int = 0
    misses: int = 0
    wrong: int = 0
    delays: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    detector: str
    fault: str
    precision: float
    recall: float
    recall_low: float
    recall_high: float
    f1: float
    delay_steps_p50: float | None
    traces: int


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion."""
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def poisson_upper(events: int) -> float:
    """Upper end of the two-sided exact 95% interval of a count (Wilson-Hilferty)."""
    k = events + 1
    return float(k * (1 - 1 / (9 * k) + 1.96 / (3 * math.sqrt(k))) ** 3) if events else 3.69


def ours(trace: Trace) -> set[str]:
    """Nodes that `analyze` calls slow."""
    return {v.node for v in analyze(trace) if v.kind == "slow_node" and v.node is not None}


def online(trace: Trace) -> dict[str, int]:
    """Nodes the online detector suspects, with the row at which it says so first."""
    detector = StragglerDetector(trace.topology)
    found: dict[str, int] = {}
    for row, step in enumerate(trace.steps):
        seconds = {name: values[row] for name, values in trace.seconds.items()}
        for suspicion in detector.observe(int(step), seconds):
            found.setdefault(suspicion.node, row)
    return found


def zscore(compute: Floats) -> Flags:
    """Windows x ranks: beyond 3 standard deviations."""
    center, scale = compute.mean(axis=1, keepdims=True), compute.std(axis=1, keepdims=True)
    flags: Flags = (compute - center) / np.maximum(scale, 1e-12) > 3.0
    return flags


def mad(compute: Floats) -> Flags:
    """Windows x ranks: modified z-score beyond 3.5."""
    center = np.median(compute, axis=1, keepdims=True)
    scale = 1.4826 * np.median(np.abs(compute - center), axis=1, keepdims=True)
    flags: Flags = (compute - center) / np.maximum(scale, 1e-12) > 3.5
    return flags


def mahalanobis(windows: Floats) -> Flags:
    """Windows x ranks: beyond the 0.999 quantile and slower. `windows`: (segments, windows, ranks)."""
    segments, count, ranks = windows.shape
    flags = np.zeros((count, ranks), dtype=bool)
    for index in range(count):
        points = windows[:, index, :].T
        centered = points - points.mean(axis=0)
        covariance = np.cov(points, rowvar=False) + 1e-9 * np.eye(segments)
        distance = np.einsum("ij,jk,ik->i", centered, np.linalg.pinv(covariance), centered)
        flags[index] = (distance > CHI_SQUARE[segments]) & (centered[:, :2].sum(axis=1) > 0)
    return flags


def baseline(trace: Trace, rule: Callable[[Trace, Ints], Flags]) -> set[str]:
    """Nodes with a rank that the rule flags in 4 of 5 windows."""
    found = set()
    for columns in trace.topology.stage_columns().values():
        flags = rule(trace, columns)
        for position, column in enumerate(columns):
            if first_run(flags[:, position].astype(np.int64), 4, 5) is not None:
                found.add(trace.topology.nodes[int(column)])
    return found


def _compute_windows(trace: Trace, columns: Ints) -> Floats:
    return window_medians((trace.seconds["forward"] + trace.seconds["backward"])[:, columns], WINDOW)


def _all_windows(trace: Trace, columns: Ints) -> Floats:
    return np.stack([window_medians(trace.seconds[name][:, columns], WINDOW) for name in SEGMENTS])


DETECTORS: Final[dict[str, Callable[[Trace], set[str]]]] = {
    "ours": ours,
    "ours online": lambda trace: set(online(trace)),
    "z-score": lambda trace: baseline(trace, lambda t, c: zscore(_compute_windows(t, c))),
    "MAD": lambda trace: baseline(trace, lambda t, c: mad(_compute_windows(t, c))),
    "Mahalanobis": lambda trace: baseline(trace, lambda t, c: mahalanobis(_all_windows(t, c))),
}


def slow_node_rows(count: int) -> list[Row]:
    """Every detector on traces with and without a slow node; other faults must not convict one."""
    scores = {name: {fault: Score(delays=[]) for fault in traces.FAULTS} for name in DETECTORS}
    for fault in traces.FAULTS:
        for index in range(count):
            shape, waits = SHAPES[index % len(SHAPES)], WAITS[index % len(WAITS)]
            if fault == "stage_imbalance" and shape.stages == 1:
                continue
            trace, label = traces.make(fault, shape, 10_000 + index, waits=waits)
            for name, detector in DETECTORS.items():
                _count(scores[name][fault], detector(trace), label.node if fault in SLOW else None)
    rows = []
    for name, by_fault in scores.items():
        wrong = sum(score.wrong for score in by_fault.values())
        hits = sum(by_fault[fault].hits for fault in SLOW)
        misses = sum(by_fault[fault].misses for fault in SLOW)
        rows.append(_row(name, "slow_node 5-30%", Score(hits, misses, wrong), hits + misses))
    return rows


def _count(score: Score, found: set[str], node: str | None) -> None:
    if node is not None:
        score.hits += node in found
        score.misses += node not in found
    score.wrong += len(found - {node})


def _row(detector: str, fault: str, score: Score, count: int) -> Row:
    precision = score.hits / max(1, score.hits + score.wrong)
    recall = score.hits / max(1, count)
    low, high = wilson(score.hits, count)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    delay = float(np.median(score.delays)) if score.delays else None
    return Row(detector, fault, precision, recall, low, high, f1, delay, count)


def delay_rows(count: int) -> list[Row]:
    """The online detector within 50 steps of the onset, by size of the slow-down."""
    rows = []
    for size in (0.05, 0.10, 0.20, 0.30):
        score = Score(delays=[])
        for index in range(count):
            shape = SHAPES[index % len(SHAPES)]
            fault, onset = SLOW[index % 2], 40 + index % WINDOW
            trace, label = traces.make(fault, shape, 20_000 + index, size=size, onset=onset)
            found = online(trace)
            delay = found.get(label.node or "", 10**6) - onset + 1
            score.hits += delay <= 50
            score.wrong += len(set(found) - {label.node})
            if delay <= 50 and score.delays is not None:
                score.delays.append(delay)
        rows.append(_row("ours online", f"slow {size:.0%} in 50 steps", score, count))
    return rows


def class_rows(count: int) -> list[Row]:
    """Every class as `analyze` names it: a hit names it (and its node, if any) and nothing else."""
    results: list[tuple[str, str, set[str], bool]] = []  # fault, its kind, kinds found, node right
    for fault in traces.FAULTS:
        for index in range(count):
            shape, waits = SHAPES[index % len(SHAPES)], WAITS[index % len(WAITS)]
            if fault == "stage_imbalance" and shape.stages == 1:
                continue
            trace, label = traces.make(fault, shape, 30_000 + index, waits=waits)
            verdicts = analyze(trace)
            right = any(v.kind == label.kind and label.node in {None, v.node} for v in verdicts)
            results.append((fault, label.kind, {v.kind for v in verdicts}, right or not label.kind))
    rows = []
    for fault in traces.FAULTS:
        mine = [result for result in results if result[0] == fault]
        hits = sum(right and found == ({kind} - {""}) for _, kind, found, right in mine)
        wrong = sum(mine[0][1] in found for _, kind, found, _ in results if kind != mine[0][1])
        rows.append(_row("ours", fault, Score(hits, len(mine) - hits, wrong), len(mine)))
    return rows


def other_rows(count: int) -> list[Row]:
    """Every class of the second generator as `analyze` names it, and 10% within 50 steps of the onset."""
    rows = []
    found: dict[str, list[tuple[traces.Fault, list[StragglerVerdict]]]] = {}
    for fault in traces_other.FAULTS:
        found[fault] = []
        for index in range(count):
            trace, label = traces_other.make(fault, 50_000 + index)
            found[fault].append((label, analyze(trace)))
    everything = [pair for pairs in found.values() for pair in pairs]
    for fault, pairs in found.items():
        kind = pairs[0][0].kind
        hits = sum(_exact(label, verdicts) for label, verdicts in pairs)
        wrong = sum(
            kind in {v.kind for v in verdicts} for label, verdicts in everything if label.kind != kind
        )
        rows.append(_row("ours", f"{fault} (other laws)", Score(hits, len(pairs) - hits, wrong), len(pairs)))
    for name, size in (("ours", 0.10), ("ours online", 0.10), ("ours", 0.05)):
        score = Score(delays=[])
        for index in range(4 * count):
            fault = SLOW[index % 2]
            trace, label = traces_other.make(fault, 60_000 + index, size=size, steps=90, onset=40)
            if name == "ours":
                score.hits += label.node in ours(trace)
            else:
                delay = online(trace).get(label.node or "", 10**6) - label.onset + 1
                score.hits += delay <= 50
                if delay <= 50 and score.delays is not None:
                    score.delays.append(delay)
        rows.append(_row(name, f"slow {size:.0%} in 50 steps (other laws)", score, 4 * count))
    return rows


def _exact(label: traces.Fault, verdicts: Sequence[StragglerVerdict]) -> bool:
    """The kind is named, with its node where it has one, and nothing else is.

    A ring whose every rank waits alike does not show which link is slow: no node is no miss there.
    """
    if {v.kind for v in verdicts} != {label.kind} - {""}:
        return False
    unnamed = {label.node, None} if label.kind == "slow_link" else {label.node}
    return not label.kind or label.node is None or bool({v.node for v in verdicts} & unnamed)


HARMLESS: Final = ("none", "drift", "sequence_scatter", "host_pause")


def false_alarms(node_hours: float) -> dict[str, float]:
    """Suspicions of the online detector on runs without a slow node, per 10,000 node-hours.

    Every eighth run is of the first generator, the others of the second, on 128 nodes.
    """
    shape = traces.Shape(stages=4, replicas=32, tensor=2, ranks_per_node=8, steps=600)
    layout = traces_other.Layout(128, 4, 1, 4)
    hours, events, index = 0.0, 0, 0
    while hours < node_hours or index < len(HARMLESS):
        fault = HARMLESS[index // 8 % len(HARMLESS)]
        if index % 8 == 0:
            trace, _ = traces.make(fault, shape, 40_000 + index)
        else:
            trace, _ = traces_other.make(fault, 40_000 + index, layout=layout, steps=600)
        events += len(online(trace))
        hours += len(set(trace.topology.nodes)) * len(trace.steps) * STEP_SECONDS / 3600.0
        index += 1
    return {
        "suspicions": events,
        "nodeHours": round(hours, 1),
        "per10kNodeHours": round(events / hours * 1e4, 3),
        "upper95": round(poisson_upper(events) / hours * 1e4, 3),
    }


def show(rows: Sequence[Row]) -> None:
    """Print a table."""
    head = ("detector", "class", "precision", "recall", "95% interval", "F1", "delay", "n")
    widths = (12, 36, 9, 7, 13, 6, 6, 5)
    print(" ".join(text.ljust(width) for text, width in zip(head, widths, strict=True)))
    for row in rows:
        cells = (
            row.detector,
            row.fault,
            f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.recall_low:.3f}-{row.recall_high:.3f}",
            f"{row.f1:.3f}",
            "-" if row.delay_steps_p50 is None else f"{row.delay_steps_p50:.0f}",
            str(row.traces),
        )
        print(" ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=int, default=36, help="traces per class")
    parser.add_argument("--false-alarm-hours", type=float, default=500.0, help="node-hours of healthy runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began = time.perf_counter()
    compared, delays = slow_node_rows(arguments.traces), delay_rows(2 * arguments.traces)
    rows = [*compared, *delays, *class_rows(arguments.traces), *other_rows(arguments.traces)]
    if not arguments.json:
        show(rows)
        sys.stdout.flush()  # what follows takes the longest
    alarms = false_alarms(arguments.false_alarm_hours)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "falseAlarms": alarms}, indent=2))
        return
    print(
        f"false suspicions (online): {alarms['suspicions']} in {alarms['nodeHours']} node-hours of "
        f"{STEP_SECONDS:g} s steps = {alarms['per10kNodeHours']} per 10,000 "
        f"(95% upper end {alarms['upper95']}); {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
