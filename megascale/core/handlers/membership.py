"""Handles nodes that join, are lost, or fall silent (suspect, probe, verdict)."""

from __future__ import annotations

import heapq
from typing import Final

from megascale.core.act import node_changes
from megascale.core.act.acquisition import RETRY_S, died_before_joining
from megascale.core.act.exclusion import readmit
from megascale.core.act.lifecycle import assemble, nobody_left_to_stop, replenish, stopped
from megascale.core.act.node_losses import note_node_loss
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract import effects as fx
from megascale.core.contract.events import JobReport, NodeGone, NodeJoined, ProbeResult
from megascale.core.contract.vocabulary import Cause, Detector, Source, Timer
from megascale.core.decide.attribution import EXPLAINABLE
from megascale.core.decide.partition_guard import is_waited_out, last_heard, seems_cut_off
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_suppressed
from megascale.core.state.record import JobState, Node, NodeStatus

PROBE_S: Final = 5.0
"""A fleet has this long to answer a probe; one that takes longer could not tell."""
_SUSPECT_SHARE: Final = 2.0 / 3.0
_SILENT_SHARE: Final = 0.5
_RECONNECT_SHARE: Final = 1.0 / 3.0
_PARTITION_PATIENCE: Final = 4.0


def on_joined(ctx: StepContext, event: NodeJoined) -> None:
    """A new agent joined, or a known one reconnected."""
    record, live = ctx.record, ctx.live
    known = live.nodes.get(event.node)
    if known is None or known.status is NodeStatus.GONE:
        record.outstanding = max(0, record.outstanding - 1)
    if event.checked:
        readmit(ctx, event.node, by_person=False)
    if ctx.is_excluded(event.node):
        _turn_away(ctx, event)
        return
    if known is None or known.incarnation != event.incarnation:
        record.draining.pop(event.node, None)
    live.nodes[event.node] = Node(event.incarnation, NodeStatus.READY, ctx.now, dict(event.labels))
    live.absent.discard(event.node)
    _watch(ctx, event.node)
    if record.outstanding == 0:
        ctx.clear_deadline(Timer.ACQUIRED)
    if _lost_its_ranks(ctx, event):
        reason = f"the agent of {event.node} restarted and its ranks are gone"
        respond(ctx, Fault(Cause.NODE_LOST, reason, node=event.node, at=ctx.now, source=Source.ESTIMATED))
    elif record.state is JobState.ASSEMBLING:
        assemble(ctx)
    else:
        node_changes.replace_draining(ctx)
        node_changes.grow_later(ctx)


def _turn_away(ctx: StepContext, event: NodeJoined) -> None:
    """Release an excluded node that joined again; the node it was to be is asked for again, after a pause."""
    node = Node(event.incarnation, NodeStatus.GONE, ctx.now, dict(event.labels), released=True)
    ctx.live.nodes[event.node] = node
    reason = ctx.record.excluded[event.node].reason or f"{event.node} is not used by this job any more"
    ctx.emit(fx.Release, reason, node=event.node)
    ctx.set_deadline(Timer.ACQUIRE_RETRY, RETRY_S)


def _lost_its_ranks(ctx: StepContext, event: NodeJoined) -> bool:
    holds = ctx.holds_ranks(event.node)
    return holds and event.attempt < ctx.record.attempt and not ctx.is_pending(fx.Launch)


def on_gone(ctx: StepContext, event: NodeGone) -> None:
    """The fleet reports a node gone: lose it without a probe; one that never joined was not acquired."""
    if event.node not in ctx.live.nodes:
        died_before_joining(ctx, event.reason)
        return
    node = ctx.node(event.node, event.incarnation)
    if node is None:
        return
    node.released = True
    if node.status is NodeStatus.GONE:
        return
    source = Source.INJECTED if event.injected else Source.OBSERVED
    cause = Cause.PLANNED if event.planned or event.node in ctx.record.draining else Cause.NODE_LOST
    reason = event.reason if event.node in event.reason else f"{event.node}: {event.reason}"
    lose(ctx, event.node, Fault(cause, reason, node=event.node, at=event.at, source=source, node_gone=True))


def lose(ctx: StepContext, name: str, fault: Fault) -> None:
    """Mark the node gone and act if it held ranks; `fault` says how it was lost."""
    record = ctx.record
    planned = fault.cause == Cause.PLANNED
    ctx.live.nodes[name].status = NodeStatus.GONE
    ctx.live.snapshots.pop(name, None)
    record.draining.pop(name, None)
    if name in record.assignment and not planned and record.state is not JobState.SUSPENDED:
        note_node_loss(ctx, name, fault.reason)
    if ctx.holds_ranks(name):
        respond(ctx, fault)
    elif _explains(ctx, fault):
        reattribute(ctx, fault)
    elif record.incident and name in record.assignment:
        record.incident.add_evidence(f"then {fault.reason}")
    if nobody_left_to_stop(ctx):
        stopped(ctx)
    elif record.state is JobState.ASSEMBLING:
        assemble(ctx)
    else:
        replenish(ctx)


def abandon_node(ctx: StepContext, name: str) -> None:
    """Lose and release a node whose ranks were not reaped in time: silent, or stuck in the kernel."""
    node = ctx.live.nodes.get(name)
    if node is None or node.status is NodeStatus.GONE:
        return
    last, kill_s = last_heard(ctx, name), ctx.policy.kill_s
    if ctx.now - last > kill_s * _SILENT_SHARE:
        at, what = last, f"{name} sent no heartbeat for {ctx.now - last:.1f} s and did not stop its ranks"
    else:
        at, what = ctx.now, f"{name}: ranks not reaped in {kill_s:g} s, stuck in the kernel"
    node.released = True
    ctx.emit(fx.Release, what, node=name)
    cause = Cause.PLANNED if name in ctx.record.draining else Cause.NODE_LOST
    lose(ctx, name, Fault(cause, what, node=name, at=at, source=Source.ESTIMATED, node_gone=True))


def _explains(ctx: StepContext, fault: Fault) -> bool:
    """Whether the loss of this node is behind the open incident, whose ranks only lost a peer."""
    incident = ctx.record.incident
    return (
        incident is not None
        and incident.consequence
        and incident.cause in EXPLAINABLE
        and fault.node in ctx.record.assignment
        and ctx.record.state in (JobState.STOPPING, JobState.ASSEMBLING)
    )


def heard(ctx: StepContext, name: str, node: Node) -> None:
    """A heartbeat of the node arrived."""
    node.heard_until = ctx.now
    node.absent = False
    ctx.live.absent.discard(name)
    if node.status in (NodeStatus.SUSPECT, NodeStatus.UNKNOWN):
        _usable_again(ctx, node)
    elif node.status is NodeStatus.GONE:
        _back_again(ctx, name, node)


def _back_again(ctx: StepContext, name: str, node: Node) -> None:
    """A node that was taken for lost sends heartbeats: it may serve as a spare unless it was released."""
    if not node.released and (ctx.is_excluded(name) or name in ctx.record.draining):
        node.released = True
        ctx.emit(fx.Release, f"{name} is not used by this job any more", node=name)
    if node.released:
        return
    _watch(ctx, name)
    _usable_again(ctx, node)


def _usable_again(ctx: StepContext, node: Node) -> None:
    """Mark the node ready; a job that assembles may have waited for it."""
    node.status = NodeStatus.READY
    if ctx.record.state is JobState.ASSEMBLING:
        assemble(ctx)


def heard_all(ctx: StepContext, event: JobReport) -> None:
    """A summarised heartbeat of all nodes but `absent` ones, which also holds until `quiet_until`."""
    live = ctx.live
    for name in event.absent:
        node = live.nodes.get(name)
        if node is not None and not node.absent:
            node.heard_until = last_heard(ctx, name)
            node.absent = True
            live.absent.add(name)
            _watch(ctx, name)
    for name in sorted(live.absent.difference(event.absent)):
        heard(ctx, name, live.nodes[name])
    live.heard_all_at, live.quiet_until = ctx.now, event.quiet_until


def check_silence(ctx: StepContext) -> None:
    """Suspect and probe nodes at two thirds of the silence bound; lose them at the bound."""
    queue = ctx.live.silence
    while queue and queue[0][0] <= ctx.seen_until:
        at, name = heapq.heappop(queue)
        node = ctx.live.nodes.get(name)
        if node is None or node.status is NodeStatus.GONE or at != node.look_at:
            continue
        if not _judge_silence(ctx, name, node):
            _watch(ctx, name)


def _judge_silence(ctx: StepContext, name: str, node: Node) -> bool:
    """Judge a silent node; returns whether it is lost."""
    last = last_heard(ctx, name)
    silent_s = ctx.seen_until - last
    reason = f"{name} sent no heartbeat for {silent_s:.1f} s"
    cause = Cause.PLANNED if name in ctx.record.draining else Cause.NODE_LOST
    fault = Fault(cause, reason, node=name, at=last, source=Source.ESTIMATED, node_gone=True)
    # compared as `_watch` computed it: a difference of two times may round to the other side
    if ctx.seen_until >= last + ctx.policy.silence_s:
        if seems_cut_off(ctx):
            _wait_out_partition(ctx)
        return not is_waited_out(ctx) and _lose_silent(ctx, name, node, fault)
    if ctx.seen_until < last + ctx.policy.silence_s * _SUSPECT_SHARE:
        if node.status is NodeStatus.SUSPECT:
            _usable_again(ctx, node)
    elif node.status is NodeStatus.READY:
        node.status = NodeStatus.SUSPECT
        ctx.emit(fx.Probe, reason, node=name, deadline_s=PROBE_S)
    return False


def _wait_out_partition(ctx: StepContext) -> None:
    """Page, and take no silent node for lost for a few times the silence bound."""
    wait_s = ctx.policy.silence_s * _PARTITION_PATIENCE
    ctx.live.cut_off_until = ctx.now + wait_s
    ctx.emit(fx.Page, f"most nodes fell silent at once: this driver may be cut off, it waits {wait_s:g} s")


def _lose_silent(ctx: StepContext, name: str, node: Node, fault: Fault) -> bool:
    """Lose the node; in shadow mode of the silence detector mark it UNKNOWN, so that it gets no ranks."""
    if ctx.holds_ranks(name) and ctx.is_shadowed(Detector.SILENCE):
        if node.status is not NodeStatus.UNKNOWN:
            note_suppressed(ctx, Detector.SILENCE, fault, "replace the node")
        node.status, node.heard_until = NodeStatus.UNKNOWN, ctx.now
        return False
    lose(ctx, name, fault)
    return True


def _watch(ctx: StepContext, name: str) -> None:
    """Queue when the node is judged next: when it would be suspected or lost if no heartbeat came."""
    node = ctx.live.nodes[name]
    last = max(last_heard(ctx, name), 0.0 if node.absent else ctx.live.quiet_until)
    share = _SUSPECT_SHARE if node.status is NodeStatus.READY else 1.0
    node.look_at = max(last + ctx.policy.silence_s * share, ctx.live.cut_off_until)
    heapq.heappush(ctx.live.silence, (node.look_at, name))


def expect(ctx: StepContext, name: str) -> None:
    """Expect a node that was not heard of in this driver life: it is UNKNOWN until the silence bound."""
    if name not in ctx.live.nodes:
        ctx.live.nodes[name] = Node(None, NodeStatus.UNKNOWN, _grace_begins(ctx))
        _watch(ctx, name)


def excuse(ctx: StepContext, gap_s: float) -> None:
    """Hold a pause of the driver against no node; after a long one, agents may first have to reconnect."""
    begins = _grace_begins(ctx) if gap_s > ctx.policy.silence_s * _RECONNECT_SHARE else 0.0
    for name, node in ctx.live.nodes.items():
        if node.status is not NodeStatus.GONE:
            node.heard_until = max(last_heard(ctx, name) + gap_s, begins)
            _watch(ctx, name)


def _grace_begins(ctx: StepContext) -> float:
    """From when silence counts: a node has `reconnect_grace_s` from now, and at least `silence_s`."""
    return ctx.now + max(0.0, ctx.policy.reconnect_grace_s - ctx.policy.silence_s)


def on_probe(ctx: StepContext, event: ProbeResult) -> None:
    """Lose a suspect that the probe found dead; one found alive has until the silence bound."""
    node = ctx.live.nodes.get(event.node)
    if node is None or node.status is not NodeStatus.SUSPECT or event.healthy is not False:
        return
    last = last_heard(ctx, event.node)
    reason = f"{event.node} sent no heartbeat for {ctx.now - last:.1f} s and the probe failed: {event.detail}"
    cause = Cause.PLANNED if event.node in ctx.record.draining else Cause.NODE_LOST
    fault = Fault(cause, reason, node=event.node, at=last, source=Source.ESTIMATED, node_gone=True)
    _lose_silent(ctx, event.node, node, fault)
