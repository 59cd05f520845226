"""Records lost nodes, and blames and excludes them at the next launch unless they share a cause."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Final

from megascale.core.act.exclusion import add_blame, exclude
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.node_losses import ANYWHERE, domain_of, is_shared
from megascale.core.state.context import StepContext
from megascale.core.state.record import (
    TEXT_KEPT_CLOSED,
    Incident,
    NodeLoss,
    shortened,
)

_ANYWHERE_FACTOR: Final = 2


def note_node_loss(ctx: StepContext, name: str, reason: str) -> None:
    """Record the loss of a node that held ranks; blame none when many are lost within `correlate_s`."""
    record = ctx.record
    record.lost[name] = NodeLoss(domain_of(ctx, name), ctx.now, shortened(reason, TEXT_KEPT_CLOSED))
    together = [n for n, loss in record.lost.items() if loss.at > ctx.now - ctx.policy.correlate_s]
    by_domain: dict[str | None, list[str]] = defaultdict(list)
    for other in together:
        by_domain[record.lost[other].domain].append(other)
    for domain, names in by_domain.items():
        if domain and len(names) >= ctx.policy.shared_cause_nodes:
            _forgive(ctx, domain, names)
    if len(together) >= _ANYWHERE_FACTOR * ctx.policy.shared_cause_nodes:
        _forgive(ctx, ANYWHERE, together)


def _forgive(ctx: StepContext, domain: str, names: list[str]) -> None:
    record = ctx.record
    # all of them are forgiven by one entry
    record.shared = {ANYWHERE: ctx.now} if domain == ANYWHERE else record.shared | {domain: ctx.now}
    for name in names:
        if not record.lost[name].shared:
            record.lost[name] = replace(record.lost[name], reason="", shared=True)
    if record.incident and record.incident.cause == Cause.NODE_LOST:
        record.incident.node = None
        record.incident.reason = (
            f"{len(names)} nodes of {domain} were lost within {ctx.policy.correlate_s:g} s: "
            "a cause they share, none of them is blamed"
        )


def release_shared(ctx: StepContext) -> None:
    """Allow nodes whose loss has a shared cause to be used again once they are back."""
    ctx.record.lost = {name: loss for name, loss in ctx.record.lost.items() if not is_shared(ctx, name)}


def _give_back(ctx: StepContext, name: str) -> None:
    """Release the node to the fleet, which may still hold one that only went silent."""
    node = ctx.live.nodes.get(name)
    if node is not None and not node.released:
        node.released = True
        ctx.emit(fx.Release, ctx.record.lost[name].reason, node=name)


def settle(ctx: StepContext, incident: Incident | None) -> None:
    """Before a launch: blame and exclude the nodes whose loss has no shared cause."""
    release_shared(ctx)
    for name in sorted(ctx.record.lost):
        if incident is not None:
            add_blame(ctx, name, Cause.NODE_LOST, incident)
            if exclude(ctx, name, incident, reason=ctx.record.lost[name].reason):
                _give_back(ctx, name)
    ctx.record.lost = {}
    ctx.record.shared = {
        d: at for d, at in ctx.record.shared.items() if at > ctx.now - ctx.policy.correlate_s
    }
