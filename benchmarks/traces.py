"""Synthetic traces of training steps, per fault class.

A step is: load data, receive, forward, backward, send, then an all-reduce over the ranks of a stage that ends
at the same time for all (and includes the wait for the slowest), then the optimizer. Sizes of faults: slow
hosts about 10% in forward and backward (MegaScale 5.1), NIC and PCIe faults of 1.4-4x on transfers
(Greyhound, Minder), last stage 1.1-1.55x, sequence-length scatter, garbage collection pauses of 100-600 ms
(OSDI'25 2505.05713), diurnal swing of 1-3% (Llama 3: 1-2%). Noise of a step 0.5-2%, lasting differences
between healthy GPUs 0.5% (assumed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from megascale.core.stats.trace import Floats, Ints, Topology, Trace

Waits = Literal["stage", "all", "pipeline"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What was put into a trace; `kind` as a verdict names it, "" = nothing."""

    kind: str
    node: str | None = None
    ranks: tuple[int, ...] = ()
    size: float = 0.0
    onset: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a run: `stages` x `replicas` x `tensor` ranks, `ranks_per_node` to a node."""

    stages: int = 2
    replicas: int = 8
    tensor: int = 1
    ranks_per_node: int = 4
    steps: int = 150

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.stages * self.replicas * self.tensor

    @property
    def width(self) -> int:
        """Ranks of one stage."""
        return self.replicas * self.tensor


def topology(shape: Shape) -> Topology:
    """Ranks of a stage are neighbours."""
    return Topology(
        tuple(range(shape.ranks)),
        tuple(f"node-{rank // shape.ranks_per_node}" for rank in range(shape.ranks)),
        tuple(rank // shape.width for rank in range(shape.ranks)),
    )


class _Run:
    """A healthy run that a fault is put into. Arrays are (steps, ranks), `transfer` is (steps, stages)."""

    def __init__(self, shape: Shape, rng: np.random.Generator, start: int | None) -> None:
        self.shape, self.rng, self.where = shape, rng, topology(shape)
        size = (shape.steps, shape.ranks)
        noise = rng.uniform(0.005, 0.02)
        natural = 1.0 + rng.normal(0.0, 0.005, shape.ranks)
        self.base = base = rng.uniform(0.2, 2.0)
        self.forward: Floats = base * natural * rng.lognormal(0.0, noise, size)
        self.backward: Floats = 2.0 * base * natural * rng.lognormal(0.0, noise, size)
        self.data: Floats = base * rng.uniform(0.005, 0.03) * rng.lognormal(0.0, 0.1, size)
        hop = base * rng.uniform(0.03, 0.1)
        self.send: Floats = hop * rng.lognormal(0.0, 0.05, size)
        self.recv: Floats = hop * rng.lognormal(0.0, 0.05, size)
        self.optimizer: Floats = base * 0.1 * rng.lognormal(0.0, 0.02, size)
        volume = base * rng.uniform(0.1, 0.4)
        self.transfer: Floats = volume * rng.lognormal(0.0, 0.03, (shape.steps, shape.stages))
        self.own: Floats = np.zeros(size)
        self.start = int(rng.integers(0, shape.steps // 2)) if start is None else start
        self.victim = int(rng.integers(shape.ranks))
        self.node = self.where.nodes[self.victim]
        self.mine: Ints = np.flatnonzero(np.asarray(self.where.nodes) == self.node)
        self.stage: Ints = np.flatnonzero(np.asarray(self.where.stages) == self.where.stages[self.victim])

    def slow(self, columns: Ints, amount: float, start: int) -> None:
        """Longer forward and backward from `start` on."""
        self.forward[start:, columns] *= 1.0 + amount
        self.backward[start:, columns] *= 1.0 + amount

    def trace(self, waits: Waits) -> Trace:
        """The segments, with the waiting that follows from the rest."""
        recv = self.recv
        if waits == "pipeline" and self.shape.stages > 1:
            recv = recv + _upstream(self.forward + self.data, self.shape.width)
        arrival = self.data + self.forward + self.backward + self.send + recv
        seconds = {
            "data": self.data,
            "recv": recv,
            "forward": self.forward,
            "backward": self.backward,
            "send": self.send,
            "allreduce": self._allreduce(arrival, across=waits == "all"),
            "optimizer": self.optimizer,
        }
        return Trace(np.arange(1, self.shape.steps + 1), self.where, seconds)

    def _allreduce(self, arrival: Floats, *, across: bool) -> Floats:
        result = np.zeros(arrival.shape)
        for stage, columns in self.where.stage_columns().items():
            last = (arrival if across else arrival[:, columns]).max(axis=1)[:, None]
            result[:, columns] = last - arrival[:, columns] + self.transfer[:, stage][:, None]
        return result + self.own


def _upstream(forward: Floats, width: int) -> Floats:
    """What a rank waits for because the stage before it is later than usual."""
    late = forward - np.median(forward, axis=1, keepdims=True)
    waiting = np.zeros(forward.shape)
    waiting[:, width:] = np.clip(late[:, :-width], 0.0, None)
    return waiting


def _none(run: _Run, size: float | None) -> Fault:
    del size
    return Fault("", onset=run.start)


def _drift(run: _Run, size: float | None) -> Fault:
    amount = run.rng.uniform(0.01, 0.03) if size is None else size
    phase = np.linspace(0, 2 * np.pi, run.shape.steps) + run.rng.uniform(0, 6)
    swing = 1.0 + amount * np.sin(phase)[:, None]
    run.forward *= swing
    run.backward *= swing
    return Fault("", size=amount)


def _slow_node(run: _Run, size: float | None) -> Fault:
    amount = run.rng.uniform(0.05, 0.30) if size is None else size
    run.slow(run.mine, amount, run.start)
    return Fault("slow_node", run.node, tuple(map(int, run.mine)), amount, run.start)


def _slow_rank(run: _Run, size: float | None) -> Fault:
    amount = run.rng.uniform(0.05, 0.30) if size is None else size
    run.slow(np.asarray([run.victim]), amount, run.start)
    return Fault("slow_node", run.node, (run.victim,), amount, run.start)


def _slow_link(run: _Run, size: float | None) -> Fault:
    factor = run.rng.uniform(1.4, 4.0) if size is None else 1.0 + size
    start, victim, peer = run.start, run.victim, run.victim
    run.send[start:, victim] *= factor
    if run.shape.stages > 1:
        peer = (victim + run.shape.width) % run.shape.ranks
        run.recv[start:, peer] *= factor
    else:
        run.own[start:, victim] += (factor - 1.0) * run.transfer[start:, 0]
    return Fault("slow_link", run.node, tuple(sorted({victim, peer})), factor - 1.0, start)


def _slow_ring(run: _Run, size: float | None) -> Fault:
    factor = run.rng.uniform(1.4, 4.0) if size is None else 1.0 + size
    start = max(run.start, 20)
    run.transfer[start:, run.where.stages[run.victim]] *= factor
    return Fault("slow_link", None, tuple(map(int, run.stage)), factor - 1.0, start)


def _stage_imbalance(run: _Run, size: float | None) -> Fault:
    amount = run.rng.uniform(0.12, 0.55) if size is None else size
    last = np.flatnonzero(np.asarray(run.where.stages) == run.shape.stages - 1)
    run.slow(last, amount, 0)
    return Fault("stage_imbalance", None, tuple(map(int, last)), amount)


def _sequence_scatter(run: _Run, size: float | None) -> Fault:
    sigma = run.rng.uniform(0.08, 0.3) if size is None else size
    length = run.rng.lognormal(0.0, sigma, (run.shape.steps, run.shape.replicas))
    replica = (np.arange(run.shape.ranks) // run.shape.tensor) % run.shape.replicas
    run.forward *= length[:, replica]
    run.backward *= length[:, replica]
    return Fault("sequence_scatter", size=sigma)


def _host_pause(run: _Run, size: float | None) -> Fault:
    rate = run.rng.uniform(0.003, 0.02) if size is None else size
    pauses = run.rng.random(run.forward.shape) < rate
    seconds = run.rng.uniform(0.1, 0.6, run.forward.shape) * max(1.0, run.base)
    in_forward = run.rng.random(run.forward.shape) < 0.6
    run.forward += pauses * in_forward * seconds
    run.backward += pauses * ~in_forward * seconds
    return Fault("host_pause", None, tuple(map(int, np.flatnonzero(pauses.any(axis=0)))), rate)


def _data_stall(run: _Run, size: float | None) -> Fault:
    amount = run.rng.uniform(0.08, 0.5) if size is None else size
    one_node = run.rng.random() < 0.7 and len(run.mine) < run.shape.ranks
    stalled = run.mine if one_node else np.arange(run.shape.ranks)
    start = max(run.start, 20)
    jitter = run.rng.lognormal(0.0, 0.2, (run.shape.steps - start, len(stalled)))
    run.data[start:, stalled] += amount * 3 * run.base * jitter
    return Fault("data_stall", run.node if one_node else None, tuple(map(int, stalled)), amount, start)


FAULTS: Final[dict[str, Callable[[_Run, float | None], Fault]]] = {
    "none": _none,
    "drift": _drift,
    "slow_node": _slow_node,
    "slow_rank": _slow_rank,
    "slow_link": _slow_link,
    "slow_ring": _slow_ring,
    "stage_imbalance": _stage_imbalance,
    "sequence_scatter": _sequence_scatter,
    "host_pause": _host_pause,
    "data_stall": _data_stall,
}


def make(
    fault: str,
    shape: Shape,
    seed: int,
    *,
    size: float | None = None,
    onset: int | None = None,
    waits: Waits = "stage",
) -> tuple[Trace, Fault]:
    """A trace with one fault.

    Args:
        fault: a key of FAULTS.
        size: how large, as a fraction of the normal time; drawn from the class's range when None.
        onset: row at which the fault begins; drawn from the first half when None.
        waits: who waits in collectives: "stage" = all-reduce within the stage; "all" = within the whole job;
            "pipeline" = within the stage, and a receive also waits for the stage before.
    """
    run = _Run(shape, np.random.default_rng(seed), onset)
    label = FAULTS[fault](run, size)
    return run.trace(waits), label
