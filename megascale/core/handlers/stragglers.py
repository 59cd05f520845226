"""Handles slow nodes: compared with their stage peers over k of n windows, then probed, then replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megascale.core.act.exclusion import notify_refusal
from megascale.core.act.lifecycle import replenish
from megascale.core.act.node_changes import swap_out
from megascale.core.contract import effects as fx
from megascale.core.contract.events import ProbeResult, SegmentTimes
from megascale.core.contract.vocabulary import Action, Cause, Detector
from megascale.core.decide.breakers import exclusion_bound
from megascale.core.decide.placement import idle_nodes
from megascale.core.handlers.membership import PROBE_S
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside, note_suppressed
from megascale.core.state.record import JobState

if TYPE_CHECKING:
    from megascale.core.stats.online import StragglerDetector, Suspicion


def on_segments(ctx: StepContext, event: SegmentTimes) -> None:
    """Feed the detector, and probe every node that it suspects."""
    record, live = ctx.record, ctx.live
    if event.attempt != record.attempt or record.state is not JobState.RUNNING:
        return
    if len(event.compute_s) != record.ranks:
        return
    import numpy as np

    if live.stragglers is None:
        live.stragglers = _detector(ctx)
    live.stragglers.min_slowdown = ctx.policy.straggler_slowdown
    compute = np.array(event.compute_s)
    compute[compute <= 0.0] = np.nan
    for suspicion in live.stragglers.observe(
        event.step, {"forward": compute, "backward": np.zeros_like(compute)}
    ):
        _suspect(ctx, suspicion)


def _detector(ctx: StepContext) -> StragglerDetector:
    from megascale.core.stats.online import StragglerDetector
    from megascale.core.stats.trace import Topology

    ranks = range(ctx.record.ranks)
    per_node = ctx.record.ranks // len(ctx.record.assignment)
    per_stage = max(1, ctx.record.ranks // ctx.policy.pipeline)
    topology = Topology(
        tuple(ranks),
        tuple(ctx.record.assignment[rank // per_node] for rank in ranks),
        tuple(rank // per_stage for rank in ranks),
    )
    return StragglerDetector(topology, min_slowdown=ctx.policy.straggler_slowdown)


def _suspect(ctx: StepContext, suspicion: Suspicion) -> None:
    probe = ctx.emit(fx.Probe, suspicion.reason, node=suspicion.node, deadline_s=PROBE_S)
    ctx.live.probes[probe.effect_id] = suspicion


def on_probe(ctx: StepContext, event: ProbeResult) -> None:
    """Replace the node if the probe confirmed that it is slow; page if the probe could not tell."""
    suspicion = ctx.live.probes.pop(event.effect_id, None)
    if suspicion is None or not ctx.holds_ranks(suspicion.node):
        return
    fault = _fault(ctx, suspicion, event)
    if event.healthy:
        note_aside(ctx, fault, Action.NONE, "the probe found the node sound")
    elif event.healthy is None:
        incident = note_aside(ctx, fault, Action.NONE, "the probe could not tell; a person decides")
        ctx.emit(fx.Page, f"{suspicion.reason}; the probe could not tell", incident=incident.id)
    elif ctx.is_shadowed(Detector.STRAGGLER):
        note_suppressed(ctx, Detector.STRAGGLER, fault, "replace the node")
        return
    elif bound := exclusion_bound(ctx):
        incident = note_aside(ctx, fault, Action.NONE, bound)
        reason = f"{suspicion.node} is slow but not replaced: {bound}"
        notify_refusal(ctx, suspicion.node, reason, incident)
    elif ctx.record.state is JobState.RUNNING and idle_nodes(ctx):
        swap_out(ctx, fault, "slower than its peers, and the probe confirmed it")
    else:
        note_aside(ctx, fault, Action.NONE, "no spare is there: a slow node is better than none")
        replenish(ctx)


def _fault(ctx: StepContext, suspicion: Suspicion, event: ProbeResult) -> Fault:
    return Fault(
        Cause.STRAGGLER,
        suspicion.reason,
        node=suspicion.node,
        rank=suspicion.ranks[0],
        at=ctx.now,
        evidence=(f"probe: {event.detail}",) if event.detail else (),
    )
