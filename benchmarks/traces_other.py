"""A second generator of step traces with other distributions than traces.py; detectors are not fitted to it.

It differs in the noise (lognormal, Student t with 3 degrees of freedom, autocorrelated, exponential tail),
in the layouts (2 to 128 nodes, pipelines across or inside nodes, tensor groups whose members wait for each
other inside forward and backward), in where waiting shows (all-reduce of the data-parallel group only, a
receive that waits for the stage before, a send that waits for the stage behind), in missing rows (single
rows, a rank that falls silent for a while) and in the faults: links that are slow for every rank of a node,
pauses on one node or on all, stalls that last or come and go. Sizes are in the ranges that traces.py cites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import traces

from megascale.core.stats.trace import Floats, Ints, Topology, Trace

NOISES: Final = ("lognormal", "student", "autocorrelated", "exponential")


@dataclass(frozen=True, slots=True)
class Layout:
    """`data` x `pipeline` x `tensor` ranks; `inside`: neighbouring ranks are stages, not replicas."""

    data: int
    pipeline: int = 1
    tensor: int = 1
    per_node: int = 8
    inside: bool = False

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.data * self.pipeline * self.tensor


LAYOUTS: Final = (
    Layout(2, per_node=1),
    Layout(4, 2, 1, 4),
    Layout(6, per_node=2),
    Layout(8, 4, 1, 8),
    Layout(8, 2, 4, 8),
    Layout(16, 4, 1, 4, inside=True),
    Layout(24, per_node=8),
    Layout(12, 4, 2, 8, inside=True),
    Layout(64, per_node=4),
    Layout(32, 8, 1, 8),
    Layout(128, 4, 1, 4),
)


class _Run:
    """A healthy run; arrays are (steps, ranks)."""

    def __init__(self, layout: Layout, rng: np.random.Generator, steps: int, noise: str) -> None:
        self.layout, self.rng, self.steps, self.noise = layout, rng, steps, noise
        count = layout.ranks
        rank = np.arange(count)
        tensor = rank % layout.tensor
        outer = rank // layout.tensor
        if layout.inside:
            self.stage, self.replica = outer % layout.pipeline, outer // layout.pipeline
        else:
            self.stage, self.replica = outer // layout.data, outer % layout.data
        self.group: Ints = self.stage * layout.tensor + tensor  # data-parallel group
        names = rng.permutation(900)[: count // layout.per_node + 1] + 100
        self.where = Topology(
            tuple(range(count)),
            tuple(f"gpu-{names[r // layout.per_node]}" for r in range(count)),
            tuple(map(int, self.stage)),
        )
        self.nodes = np.asarray(self.where.nodes)
        self.micro = 8 if layout.pipeline > 1 else 4
        self.base = base = float(rng.uniform(0.05, 3.0))
        natural = 1.0 + rng.normal(0.0, rng.uniform(0.002, 0.007), count)
        self.sigma = float(rng.uniform(0.004, 0.02))
        self.forward = base * natural * self.jitter(self.sigma)
        self.backward = rng.uniform(1.8, 2.2) * base * natural * self.jitter(self.sigma)
        self.data = base * rng.uniform(0.002, 0.03) * self.jitter(0.15)
        self.optimizer = base * rng.uniform(0.03, 0.15) * self.jitter(0.03)
        self.hop = base * rng.uniform(0.02, 0.12) * self.jitter(0.06)
        self.back_hop = base * rng.uniform(0.02, 0.12) * self.jitter(0.06)
        self.transfer = base * rng.uniform(0.1, 0.6) * self.per_group(self.jitter(0.04))
        self.victim = int(rng.integers(count))
        self.node = str(self.nodes[self.victim])
        self.mine: Ints = np.flatnonzero(self.nodes == self.node)
        self.onset = int(rng.integers(steps // 5, max(steps // 5 + 1, steps - 60)))

    def jitter(self, sigma: float) -> Floats:
        """Positive factors around 1."""
        size = (self.steps, self.layout.ranks)
        if self.noise == "student":
            return np.maximum(1.0 + 0.6 * sigma * self.rng.standard_t(3, size), 0.3)
        if self.noise == "exponential":
            return 1.0 + self.rng.exponential(sigma, size)
        white = self.rng.normal(0.0, 1.0, size)
        if self.noise == "autocorrelated":
            keep = self.rng.uniform(0.5, 0.9)
            for row in range(1, self.steps):
                white[row] = keep * white[row - 1] + np.sqrt(1 - keep**2) * white[row]
        return np.asarray(np.exp(sigma * white))

    def per_group(self, values: Floats) -> Floats:
        """The value of one rank of each data-parallel group for all of it."""
        first = {int(g): int(np.flatnonzero(self.group == g)[0]) for g in np.unique(self.group)}
        return values[:, [first[int(g)] for g in self.group]]

    def slow(self, columns: Ints, amount: float, start: int) -> None:
        """Longer forward and backward from row `start` on."""
        self.forward[start:, columns] *= 1.0 + amount
        self.backward[start:, columns] *= 1.0 + amount

    def trace(self) -> Trace:
        """All segments with their waiting, and holes."""
        forward, backward = self._tensor_sync(self.forward), self._tensor_sync(self.backward)
        seconds = {"data": self.data, "forward": forward, "backward": backward, "optimizer": self.optimizer}
        arrival = self.data + forward + backward
        if self.layout.pipeline > 1:
            seconds["recv"] = self.hop + self._neighbour(forward + self.data, -1) / self.micro
            seconds["send"] = self.back_hop + self._neighbour(backward, 1) / self.micro
            arrival = arrival + seconds["recv"] + seconds["send"]
        waiting = np.zeros(arrival.shape)
        for group in np.unique(self.group):
            columns = np.flatnonzero(self.group == group)
            waiting[:, columns] = arrival[:, columns].max(axis=1)[:, None] - arrival[:, columns]
        seconds["allreduce"] = self.transfer + waiting
        return Trace(np.arange(1000, 1000 + self.steps), self.where, self._holes(seconds))

    def _tensor_sync(self, values: Floats) -> Floats:
        """Members of a tensor group meet many times in a forward: all take what the slowest takes."""
        size = self.layout.tensor
        if size == 1:
            return values
        grouped = values.reshape(self.steps, -1, size)
        return np.repeat(grouped.max(axis=2), size, axis=1)

    def _neighbour(self, values: Floats, side: int) -> Floats:
        """How much later than its stage's median the rank before (-1) or behind (1) in the pipeline is."""
        late = np.zeros(values.shape)
        for stage in np.unique(self.stage):
            columns = np.flatnonzero(self.stage == stage)
            late[:, columns] = values[:, columns] - np.median(values[:, columns], axis=1)[:, None]
        step = self.layout.tensor * (1 if self.layout.inside else self.layout.data)
        moved = np.roll(late, -side * step, axis=1)
        edge = self.stage == (0 if side < 0 else self.layout.pipeline - 1)
        moved[:, edge] = 0.0
        return np.clip(moved, 0.0, None)

    def _holes(self, seconds: dict[str, Floats]) -> dict[str, Floats]:
        if self.rng.random() < 0.5:
            return seconds
        silent = int(self.rng.integers(self.layout.ranks))
        start = int(self.rng.integers(self.steps))
        result = {}
        for name, values in seconds.items():
            holed = np.where(self.rng.random(values.shape) < 0.01, np.nan, values)
            if self.layout.ranks > 2:
                holed[start : start + self.steps // 6, silent] = np.nan
            result[name] = holed
        return result


def _none(run: _Run) -> traces.Fault:
    return traces.Fault("", onset=run.onset)


def _drift(run: _Run) -> traces.Fault:
    """Warmer in the day: all ranks alike, racks a little differently."""
    amount = run.rng.uniform(0.01, 0.04)
    phase = np.linspace(0.0, run.rng.uniform(1.0, 7.0), run.steps) + run.rng.uniform(0.0, 6.0)
    rack = run.rng.normal(1.0, 0.1, run.layout.ranks // run.layout.per_node + 1)
    by_rank = rack[np.arange(run.layout.ranks) // run.layout.per_node]
    swing = 1.0 + amount * by_rank * np.sin(phase)[:, None]
    run.forward *= swing
    run.backward *= swing
    return traces.Fault("", size=amount)


def _slow(run: _Run, columns: Ints, size: float | None) -> traces.Fault:
    amount = float(run.rng.uniform(0.05, 0.30)) if size is None else size
    alone = set(run.nodes[run.stage == run.stage[run.victim]]) == {run.node}  # else it looks like its stage
    start = run.onset if alone or run.rng.random() < 0.7 else 0
    run.slow(columns, amount, start)
    return traces.Fault("slow_node", run.node, tuple(map(int, columns)), amount, start)


def _slow_link(run: _Run) -> traces.Fault:
    """The NIC of a node: sends, receives and the ring through it."""
    factor, start = float(run.rng.uniform(1.5, 4.0)), run.onset
    if run.layout.pipeline > 1:
        run.hop[start:, run.mine] *= factor
        run.back_hop[start:, run.mine] *= factor
    rings = np.isin(run.group, run.group[run.mine])
    run.transfer[start:, rings] *= factor
    return traces.Fault("slow_link", run.node, tuple(map(int, run.mine)), factor - 1.0, start)


def _imbalance(run: _Run) -> traces.Fault:
    amount = float(run.rng.uniform(0.12, 0.5))
    stage = int(run.rng.choice([0, run.layout.pipeline - 1, run.layout.pipeline // 2]))
    columns = np.flatnonzero(run.stage == stage)
    run.slow(columns, amount, 0)
    return traces.Fault("stage_imbalance", None, tuple(map(int, columns)), amount)


def _scatter(run: _Run) -> traces.Fault:
    """Documents of gamma-distributed length packed into batches; attention makes the cost convex."""
    shape = float(run.rng.uniform(8.0, 60.0))
    length = run.rng.gamma(shape, 1.0 / shape, (run.steps, run.layout.data)) ** 1.2
    run.forward *= length[:, run.replica]
    run.backward *= length[:, run.replica]
    return traces.Fault("sequence_scatter", size=1.2 / np.sqrt(shape))


def _pauses(run: _Run) -> traces.Fault:
    """Garbage collection, on every rank or on the ranks of one node."""
    one = run.rng.random() < 0.4 and len(run.mine) < run.layout.ranks
    columns = run.mine if one else np.arange(run.layout.ranks)
    rate = run.rng.uniform(0.02, 0.06) if one else run.rng.uniform(0.004, 0.03)
    hit = run.rng.random((run.steps, len(columns))) < rate
    if hit.sum() < 6:
        hit[run.rng.integers(0, run.steps, 8), run.rng.integers(0, len(columns), 8)] = True
    length = hit * run.rng.uniform(0.15, 0.5, hit.shape) * 3 * run.base
    first = run.rng.random(hit.shape) < 0.5
    run.forward[:, columns] += length * first
    run.backward[:, columns] += length * ~first
    return traces.Fault("host_pause", run.node if one else None, size=float(rate))


def _stall(run: _Run) -> traces.Fault:
    """A node's loader or the shared file system: lasting from the onset on, or every few steps."""
    amount = float(run.rng.uniform(0.08, 0.5))
    one = run.rng.random() < 0.6 and len(run.mine) < run.layout.ranks
    columns = run.mine if one else np.arange(run.layout.ranks)
    rows = np.arange(run.onset, run.steps)
    if run.rng.random() < 0.3:
        rows = rows[:: int(run.rng.integers(6, 12))]
    jitter = run.rng.gamma(8.0, 1.0 / 8.0, (len(rows), len(columns)))
    run.data[np.ix_(rows, columns)] += amount * 3 * run.base * jitter
    return traces.Fault("data_stall", run.node if one else None, tuple(map(int, columns)), amount, run.onset)


FAULTS: Final[dict[str, Callable[[_Run, float | None], traces.Fault]]] = {
    "none": lambda run, _: _none(run),
    "drift": lambda run, _: _drift(run),
    "slow_node": lambda run, size: _slow(run, run.mine, size),
    "slow_rank": lambda run, size: _slow(run, np.asarray([run.victim]), size),
    "slow_link": lambda run, _: _slow_link(run),
    "stage_imbalance": lambda run, _: _imbalance(run),
    "sequence_scatter": lambda run, _: _scatter(run),
    "host_pause": lambda run, _: _pauses(run),
    "data_stall": lambda run, _: _stall(run),
}


def make(
    fault: str,
    seed: int,
    *,
    size: float | None = None,
    layout: Layout | None = None,
    steps: int | None = None,
    onset: int | None = None,
) -> tuple[Trace, traces.Fault]:
    """A trace with one fault; what is not given is drawn from the seed.

    Args:
        fault: a key of FAULTS.
        size: of a slow node or rank, as a fraction.
        onset: row at which a fault begins that has a beginning.
    """
    rng = np.random.default_rng([seed, *fault.encode()])
    chosen = layout or LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    if fault == "stage_imbalance" and chosen.pipeline == 1:
        chosen = Layout(8, 4, 1, 8)
    count = steps or int(rng.integers(70, 300))
    run = _Run(chosen, rng, count, NOISES[int(rng.integers(len(NOISES)))])
    if onset is not None:
        run.onset = onset
    label = FAULTS[fault](run, size)
    return run.trace(), label
