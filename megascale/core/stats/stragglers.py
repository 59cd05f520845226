"""All findings in one trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from megascale.core.stats.compute import (
    SlowRank,
    history_verdict,
    scatter_verdict,
    slow_nodes,
    slow_ranks,
    stage_verdicts,
)
from megascale.core.stats.links import link_verdicts
from megascale.core.stats.pauses import data_verdicts, pause_verdicts
from megascale.core.stats.trace import Trace
from megascale.core.stats.verdicts import StragglerVerdict

_MIN_STEPS: Final = 8


def analyze(trace: Trace) -> list[StragglerVerdict]:
    """Verdicts in order of weight: nodes, data, links, stages, scatter, pauses. No fault: an empty list.

    Fewer than 32 steps are too few for k of n windows; nothing is said of them.
    """
    if len(trace.steps) < _MIN_STEPS:
        return []
    slow = slow_ranks(trace)
    nodes = slow_nodes(trace, slow)
    stages = stage_verdicts(trace, slow)
    nodes += _one_per_node([v for v in stages if v.kind == "slow_node"], known={v.node for v in nodes})
    history = history_verdict(trace)
    if history is not None and not nodes:
        nodes.append(history)
    imbalance = [verdict for verdict in stages if verdict.kind == "stage_imbalance"]
    data = data_verdicts(trace)
    since = [int(np.searchsorted(trace.steps, verdict.since_step)) for verdict in [*nodes, *data, *imbalance]]
    links = link_verdicts(trace, since)
    scatter = scatter_verdict(trace)
    pauses = [
        verdict
        for verdict in pause_verdicts(trace, _convicted(trace, slow, data))
        if not (verdict.kind == "data_stall" and data)
    ]
    return [*nodes, *data, *links, *imbalance, *([scatter] if scatter else []), *pauses]


def _convicted(trace: Trace, slow: list[SlowRank], data: list[StragglerVerdict]) -> set[int]:
    stalled = {rank for verdict in data for rank in verdict.ranks}
    return {rank.column for rank in slow} | {
        column for column, rank in enumerate(trace.topology.ranks) if rank in stalled
    }


def _one_per_node(verdicts: list[StragglerVerdict], known: set[str | None]) -> list[StragglerVerdict]:
    """A node that holds several whole stages is one finding."""
    merged: dict[str | None, StragglerVerdict] = {}
    for verdict in verdicts:
        if verdict.node in known:
            continue
        first = merged.setdefault(verdict.node, verdict)
        ranks = tuple(sorted({*first.ranks, *verdict.ranks}))
        merged[verdict.node] = replace(
            first, ranks=ranks, since_step=min(first.since_step, verdict.since_step)
        )
    return list(merged.values())
