"""Blames nodes, excludes them from the job, readmits them, and releases those that the job does not use."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.blame import WEIGHTS, blame_of, decayed
from megascale.core.decide.breakers import HOUR_S, WEEK_S, exclusion_bound
from megascale.core.state.context import StepContext
from megascale.core.state.record import (
    TEXT_KEPT_CLOSED,
    Blame,
    Exclusion,
    Incident,
    NodeStatus,
)

_FORGOTTEN: Final = 0.02
_HISTORIES_KEPT: Final = 64
_REASONS_KEPT: Final = 16
_REFUSALS_PAGED: Final = 16
_BLAMED_KEPT: Final = 8


def add_blame(ctx: StepContext, node: str, cause: Cause, incident: Incident) -> None:
    """Add the weight of `cause` to the node's blame, and note the time for lemon detection."""
    weight = WEIGHTS.get(cause, 0.0)
    if not weight:
        return
    record = ctx.record
    record.blame = {n: b for n, b in record.blame.items() if blame_of(ctx, n) > _FORGOTTEN}
    record.blame[node] = Blame(blame_of(ctx, node) + weight, ctx.now)
    incident.blamed[node] = Blame(weight, ctx.now)
    for other in list(incident.blamed)[:-_BLAMED_KEPT]:
        del incident.blamed[other]
    times = record.history.setdefault(node, [])
    times[:] = [t for t in times if t > ctx.now - ctx.policy.lemon_window_s]
    # A burst is one incident: what makes a lemon is that it comes back after all seemed well.
    if not times or ctx.now - times[-1] >= HOUR_S:
        times.append(ctx.now)
    while len(record.history) > _HISTORIES_KEPT:
        del record.history[min(record.history, key=lambda n: record.history[n][-1])]


def take_back_blame(ctx: StepContext, incident: Incident) -> None:
    """Undo every `add_blame` for the incident, which turned out to have another cause."""
    record = ctx.record
    for node, given in incident.blamed.items():
        if node in record.blame:
            left = blame_of(ctx, node) - decayed(ctx, given)
            record.blame[node] = Blame(max(0.0, left), ctx.now)
        times = [t for t in record.history.pop(node, []) if t != given.at]
        if times:
            record.history[node] = times
    incident.blamed = {}


def exclude(
    ctx: StepContext,
    node: str,
    incident: Incident,
    *,
    reason: str | None = None,
    forced: bool = False,
    retired: bool = False,
) -> bool:
    """Exclude the node from this job, or page when a bound forbids it; returns whether it is excluded.

    Args:
        reason: why, where the incident's reason is about more than this node.
        forced: a person asked for it, no bound applies.
    """
    record = ctx.record
    if node in record.excluded:
        return True
    bound = exclusion_bound(ctx)
    if bound and not forced:
        refusal = f"{node} is not excluded: {bound}"
        incident.add_evidence(refusal)
        notify_refusal(ctx, node, refusal, incident)
        return False
    if not forced:
        recent = [at for at in record.exclusion_times if at > ctx.now - WEEK_S]
        record.exclusion_times = [*recent, ctx.now]
    reason = (reason or incident.reason)[:TEXT_KEPT_CLOSED]
    for name, old in list(record.excluded.items())[: 1 - _REASONS_KEPT]:
        record.excluded[name] = replace(old, reason=None)
    record.excluded[node] = Exclusion(reason, incident.id, ctx.now, retired)
    record.blame.pop(node, None)
    ctx.emit(fx.Exclude, reason, node=node, incident=incident.id)
    if ctx.policy.quarantine:
        ctx.emit(fx.RequestQuarantine, reason, node=node, incident=incident.id)
    release_unwanted(ctx)
    return True


def notify_refusal(ctx: StepContext, node: str, reason: str, incident: Incident) -> None:
    """Page that a bound forbids excluding the node; at most once an hour, and for 16 nodes."""
    record = ctx.record
    record.refused = {name: at for name, at in record.refused.items() if at > ctx.now - HOUR_S}
    if node in record.refused or len(record.refused) >= _REFUSALS_PAGED:
        return
    record.refused[node] = ctx.now
    if len(record.refused) == _REFUSALS_PAGED:
        reason += f"; the last page of this kind about this job for up to {HOUR_S / 60:g} minutes"
    ctx.emit(fx.Page, reason, incident=incident.id)


def readmit(ctx: StepContext, node: str, *, by_person: bool) -> None:
    """Allow the node again: it passed the checks, or a person released it, as a retired node needs."""
    exclusion = ctx.record.excluded.get(node)
    if exclusion is None or (exclusion.retired and not by_person):
        return
    del ctx.record.excluded[node]
    if by_person:
        ctx.record.history.pop(node, None)


def release_unwanted(ctx: StepContext) -> None:
    """Release excluded and draining nodes that no longer hold ranks to the fleet."""
    record = ctx.record
    reasons: dict[str, str | None] = {name: out.reason for name, out in record.excluded.items()}
    reasons |= {name: why for name, why in record.draining.items() if name not in reasons}
    for name in sorted(reasons):
        node = ctx.live.nodes.get(name)
        if node is not None and node.status is not NodeStatus.GONE and not ctx.in_use(name):
            node.status, node.released = NodeStatus.GONE, True
            ctx.emit(fx.Release, reasons[name] or f"{name} is not used by this job any more", node=name)
