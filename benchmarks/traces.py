"""Synthetic traces of training steps, per fault class.

A step: load data, receive, forward, backward, send, then an all-reduce over the ranks of a stage that ends for all at
once (so it holds the waiting for the slowest), then the optimizer. Figures: slow hosts about 10% in forward and
backward (MegaScale 5.1), NIC and PCIe faults of 1.3-4x on transfers (Greyhound, Minder), last stage 1.1-1.55x,
sequence-length scatter, garbage collection pauses of 100-500 ms (OSDI'25 2505.05713), diurnal swing of 1-2% (Llama 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from megascale.core.stats.trace import Floats, Topology, Trace

FAULTS: Final = (
    "none",
    "drift",
    "slow_node",
    "slow_rank",
    "slow_link",
    "slow_ring",
    "stage_imbalance",
    "sequence_scatter",
    "host_pause",
    "data_stall",
)


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


def topology(shape: Shape) -> Topology:
    """Ranks of a stage are neighbours."""
    per_stage = shape.replicas * shape.tensor
    return Topology(
        tuple(range(shape.ranks)),
        tuple(f"node-{rank // shape.ranks_per_node}" for rank in range(shape.ranks)),
        tuple(rank // per_stage for rank in range(shape.ranks)),
    )


def make(
    fault: str,
    shape: Shape,
    seed: int,
    *,
    size: float | None = None,
    onset: int | None = None,
    waits: str = "stage",
) -> tuple[Trace, Fault]:
    """A trace with one fault.

    Args:
        size: slow-down as a fraction; drawn from the class's range when None.
        onset: row at which the fault begins; drawn when None.
        waits: who waits in collectives: "stage" = all-reduce within the stage; "all" = within the whole job; "pipeline" =
            within the stage, and a receive also waits for the stage before.
    """
    rng = np.random.default_rng(seed)
    where = topology(shape)
    steps, ranks = shape.steps, shape.ranks
    noise = rng.uniform(0.005, 0.02)
    natural = 1.0 + rng.normal(0.0, 0.005, ranks)
    base = rng.uniform(0.2, 2.0)
    forward = base * natural * rng.lognormal(0.0, noise, (steps, ranks))
    backward = 2.0 * base * natural * rng.lognormal(0.0, noise, (steps, ranks))
    data = base * rng.uniform(0.005, 0.03) * rng.lognormal(0.0, 0.1, (steps, ranks))
    hop = base * rng.uniform(0.03, 0.1)
    send, recv = (hop * rng.lognormal(0.0, 0.05, (steps, ranks)) for _ in range(2))
    optimizer = base * 0.1 * rng.lognormal(0.0, 0.02, (steps, ranks))
    transfer = base * rng.uniform(0.1, 0.4) * rng.lognormal(0.0, 0.03, (steps, shape.stages))
    own = np.zeros((steps, ranks))
    start = int(rng.integers(0, steps // 2)) if onset is None else onset
    victim = int(rng.integers(ranks))
    node = where.nodes[victim]
    mine = np.asarray([column for column in range(ranks) if where.nodes[column] == node])
    label = Fault("", onset=start)

    if fault == "drift":
        swing = 1.0 + rng.uniform(0.01, 0.03) * np.sin(np.linspace(0, 2 * np.pi, steps) + rng.uniform(0, 6))
        forward, backward = forward * swing[:, None], backward * swing[:, None]
    elif fault in ("slow_node", "slow_rank"):
        amount = rng.uniform(0.05, 0.30) if size is None else size
        hit = mine if fault == "slow_node" else np.asarray([victim])
        forward[start:, hit] *= 1.0 + amount
        backward[start:, hit] *= 1.0 + amount
        label = Fault("slow_node", node, tuple(int(c) for c in hit), amount, start)
    elif fault == "slow_link":
        factor = rng.uniform(1.4, 4.0) if size is None else 1.0 + size
        send[start:, victim] *= factor
        if shape.stages > 1:
            peer = (victim + shape.replicas * shape.tensor) % ranks
            recv[start:, peer] *= factor
        else:
            peer = victim
            own[start:, victim] += (factor - 1.0) * transfer[start:, 0]
        label = Fault("slow_link", node, tuple(sorted({victim, peer})), factor - 1.0, start)
    elif fault == "slow_ring":
        factor = rng.uniform(1.4, 4.0) if size is None else 1.0 + size
        start = max(start, 20)
        stage = where.stages[victim]
        transfer[start:, stage] *= factor
        label = Fault(
            "slow_link", None, tuple(c for c in range(ranks) if where.stages[c] == stage), factor - 1.0, start
        )
    elif fault == "stage_imbalance":
        amount = rng.uniform(0.12, 0.55) if size is None else size
        last = np.asarray(where.stages) == shape.stages - 1
        forward[:, last] *= 1.0 + amount
        backward[:, last] *= 1.0 + amount
        label = Fault("stage_imbalance", None, tuple(int(c) for c in np.flatnonzero(last)), amount, 0)
    elif fault == "sequence_scatter":
        sigma = rng.uniform(0.08, 0.3) if size is None else size
        length = rng.lognormal(0.0, sigma, (steps, shape.replicas))
        per_rank = np.stack([length[:, (c // shape.tensor) % shape.replicas] for c in range(ranks)], axis=1)
        forward, backward = forward * per_rank, backward * per_rank
        label = Fault("sequence_scatter", None, (), sigma, 0)
    elif fault == "host_pause":
        rate = rng.uniform(0.003, 0.02)
        pauses = rng.random((steps, ranks)) < rate
        seconds = rng.uniform(0.15, 0.6, (steps, ranks)) * max(1.0, base)
        in_forward = rng.random((steps, ranks)) < 0.6
        forward += pauses * in_forward * seconds
        backward += pauses * ~in_forward * seconds
        label = Fault("host_pause", None, tuple(int(c) for c in np.flatnonzero(pauses.any(axis=0))), rate, 0)
    elif fault == "data_stall":
        amount = rng.uniform(0.08, 0.5) if size is None else size
        stalled = mine if rng.random() < 0.7 else np.arange(ranks)
        start = max(start, 20) if len(stalled) == ranks else start
        data[start:, stalled] += amount * 3 * base * rng.lognormal(0.0, 0.2, (steps - start, len(stalled)))
        label = Fault(
            "data_stall",
            node if len(stalled) < ranks else None,
            tuple(int(c) for c in stalled),
            amount,
            start,
        )
    elif fault != "none":
        raise ValueError(f"unknown fault {fault!r}, expected one of {', '.join(FAULTS)}")

    if waits == "pipeline" and shape.stages > 1:
        recv = recv + _upstream(forward + data, shape)
    allreduce = _allreduce(
        data + forward + backward + send + recv, transfer, own, where, across=waits == "all"
    )
    seconds_of = {
        "data": data,
        "recv": recv,
        "forward": forward,
        "backward": backward,
        "send": send,
        "allreduce": allreduce,
        "optimizer": optimizer,
    }
    return Trace(np.arange(1, steps + 1), where, seconds_of), label


def _upstream(forward: Floats, shape: Shape) -> Floats:
    """What a rank waits for because the stage before it is later than usual."""
    width = shape.replicas * shape.tensor
    late = forward - np.median(forward, axis=1, keepdims=True)
    waiting = np.zeros(forward.shape)
    waiting[:, width:] = np.clip(late[:, :-width], 0.0, None)
    return waiting


def _allreduce(arrival: Floats, transfer: Floats, own: Floats, where: Topology, *, across: bool) -> Floats:
    """Ends for all ranks of a stage (or of the job) together, `own` excepted."""
    result = np.zeros(arrival.shape)
    for stage, columns in where.stage_columns().items():
        last = (arrival if across else arrival[:, columns]).max(axis=1)[:, None]
        result[:, columns] = last - arrival[:, columns] + transfer[:, stage][:, None] + own[:, columns]
    return result
