"""Who is there: joins, losses, silence (suspect, probe, verdict)."""

from __future__ import annotations

import heapq
from typing import Final

from megascale.core.act import drain, growth
from megascale.core.act.lifecycle import assemble, nobody_left_to_stop, replenish, stopped
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract import effects as fx
from megascale.core.contract.events import JobReport, NodeGone, NodeJoined, ProbeResult
from megascale.core.decide.attribution import EXPLAINABLE
from megascale.core.decide.blame import readmit
from megascale.core.decide.memory_tier import forget
from megascale.core.decide.node_losses import note_loss
from megascale.core.decide.partition_guard import last_heard, waits_until
from megascale.core.decide.shadow import held_back
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault
from megascale.core.state.record import Node, NodeStatus, Stage

_SUSPECT_SHARE: Final = 2.0 / 3.0
_SILENT_SHARE: Final = 0.5


def on_joined(turn: Turn, event: NodeJoined) -> None:
    """A new agent, or a known one that reconnected."""
    record, live = turn.record, turn.live
    known = live.nodes.get(event.node)
    if known is None or known.status is NodeStatus.GONE:
        record.outstanding = max(0, record.outstanding - 1)
    if event.checked:
        readmit(turn, event.node, by_person=False)
    if turn.is_excluded(event.node):
        _turn_away(turn, event)
        return
    if known is None or known.incarnation != event.incarnation:
        record.draining.pop(event.node, None)
    live.nodes[event.node] = Node(event.incarnation, NodeStatus.READY, turn.now, dict(event.labels))
    live.absent.discard(event.node)
    _watch(turn, event.node)
    if record.outstanding == 0:
        turn.clear_deadline("acquired")
    if _lost_its_ranks(turn, event):
        reason = f"the agent of {event.node} restarted and its ranks are gone"
        respond(turn, Fault("node_lost", reason, node=event.node, at=turn.now, source="estimated"))
    elif record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        drain.swap_if_possible(turn)
        growth.look_for_nodes(turn)


def _turn_away(turn: Turn, event: NodeJoined) -> None:
    """An excluded node came back; whatever it was sent for is asked for again, but not at once."""
    node = Node(event.incarnation, NodeStatus.GONE, turn.now, dict(event.labels), released=True)
    turn.live.nodes[event.node] = node
    turn.emit(fx.Release, turn.record.excluded[event.node].reason, node=event.node)
    turn.set_deadline("acquireRetry", turn.policy.acquire_retry_s)


def _lost_its_ranks(turn: Turn, event: NodeJoined) -> bool:
    holds = turn.holds_ranks(event.node)
    return holds and event.attempt < turn.record.attempt and not turn.is_pending(fx.Launch)


def on_gone(turn: Turn, event: NodeGone) -> None:
    """The fleet is sure; no probe is needed. A node that dies before its hello is asked for again, later."""
    if event.node not in turn.live.nodes:
        if turn.record.outstanding:
            turn.record.outstanding -= 1
            turn.set_deadline("acquireRetry", turn.policy.acquire_retry_s)
        return
    node = turn.node(event.node, event.incarnation)
    if node is None:
        return
    node.released = True
    if node.status is NodeStatus.GONE:
        return
    source = "injected" if event.injected else "observed"
    cause = "planned" if event.planned or event.node in turn.record.draining else "node_lost"
    reason = event.reason if event.node in event.reason else f"{event.node}: {event.reason}"
    lose(turn, Fault(cause, reason, node=event.node, at=event.at, source=source, node_gone=True))


def lose(turn: Turn, fault: Fault) -> None:
    """Mark the node gone and act if it held ranks."""
    record, name = turn.record, fault.node
    planned = fault.cause == "planned"
    turn.live.nodes[name].status = NodeStatus.GONE
    forget(turn, name)
    record.draining.pop(name, None)
    if name in record.assignment and not planned and record.stage is not Stage.SUSPENDED:
        note_loss(turn, name, fault.reason)
    if turn.holds_ranks(name):
        respond(turn, fault)
    elif _explains(turn, fault):
        reattribute(turn, fault)
    elif record.incident and name in record.assignment:
        record.incident.add_evidence(f"then {fault.reason}")
    if nobody_left_to_stop(turn):
        stopped(turn)
    elif record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        replenish(turn)


def leave_behind(turn: Turn, name: str) -> None:
    """A node whose ranks were not reaped in time: it is silent, or stuck in the kernel (design 3)."""
    node = turn.live.nodes.get(name)
    if node is None or node.status is NodeStatus.GONE:
        return
    last, kill_s = last_heard(turn, name), turn.policy.kill_s
    if turn.now - last > kill_s * _SILENT_SHARE:
        at, what = last, f"{name} sent no beat for {turn.now - last:.1f} s and did not stop its ranks"
    else:
        at, what = turn.now, f"{name}: ranks not reaped in {kill_s:g} s, stuck in the kernel"
    node.released = True
    turn.emit(fx.Release, what, node=name)
    cause = "planned" if name in turn.record.draining else "node_lost"
    lose(turn, Fault(cause, what, node=name, at=at, source="estimated", node_gone=True))


def _explains(turn: Turn, fault: Fault) -> bool:
    """Whether the ranks that are being stopped or replaced only lost their peer on this node."""
    incident = turn.record.incident
    return (
        incident is not None
        and incident.consequence
        and incident.cause in EXPLAINABLE
        and fault.node in turn.record.assignment
        and turn.record.stage in (Stage.STOPPING, Stage.ASSEMBLING)
    )


def heard(turn: Turn, name: str, node: Node) -> None:
    """A beat arrived."""
    node.heard_until = turn.now
    node.absent = False
    turn.live.absent.discard(name)
    if node.status in (NodeStatus.SUSPECT, NodeStatus.UNKNOWN):
        _usable_again(turn, node)
    elif node.status is NodeStatus.GONE:
        _back_again(turn, name, node)


def _back_again(turn: Turn, name: str, node: Node) -> None:
    """A node taken for lost still beats: what was decided stands, but it may serve as a spare."""
    if not node.released and (turn.is_excluded(name) or name in turn.record.draining):
        node.released = True
        turn.emit(fx.Release, f"{name} is not used by this job any more", node=name)
    if node.released:
        return
    _watch(turn, name)
    _usable_again(turn, node)


def _usable_again(turn: Turn, node: Node) -> None:
    """The launch may have waited for just this node."""
    node.status = NodeStatus.READY
    if turn.record.stage is Stage.ASSEMBLING:
        assemble(turn)


def heard_all(turn: Turn, event: JobReport) -> None:
    """Beats of the whole job, with a promise until `quiet_until` for all but `absent` nodes."""
    live = turn.live
    for name in event.absent:
        node = live.nodes.get(name)
        if node is not None and not node.absent:
            node.heard_until = last_heard(turn, name)
            node.absent = True
            live.absent.add(name)
            _watch(turn, name)
    for name in sorted(live.absent.difference(event.absent)):
        heard(turn, name, live.nodes[name])
    live.heard_all_at, live.quiet_until = turn.now, event.quiet_until


def check_silence(turn: Turn) -> None:
    """Suspect and probe nodes at two thirds of the silence bound; lose them at the bound."""
    queue = turn.live.silence
    while queue and queue[0][0] <= turn.now:
        at, name = heapq.heappop(queue)
        node = turn.live.nodes.get(name)
        if node is None or node.status is NodeStatus.GONE or at != node.look_at:
            continue
        if not _judge_silence(turn, name, node):
            _watch(turn, name)


def _judge_silence(turn: Turn, name: str, node: Node) -> bool:
    """Whether the node is lost."""
    last = last_heard(turn, name)
    silent_s = turn.now - last
    reason = f"{name} sent no beat for {silent_s:.1f} s"
    cause = "planned" if name in turn.record.draining else "node_lost"
    fault = Fault(cause, reason, node=name, at=last, source="estimated", node_gone=True)
    # compared as `_watch` computed it: a difference of two times may round to the other side
    if turn.now >= last + turn.policy.silence_s:
        return not waits_until(turn) and _lose_silent(turn, name, node, fault)
    if turn.now < last + turn.policy.silence_s * _SUSPECT_SHARE:
        if node.status is NodeStatus.SUSPECT:
            _usable_again(turn, node)
    elif node.status is NodeStatus.READY:
        node.status = NodeStatus.SUSPECT
        turn.emit(fx.Probe, reason, node=name, deadline_s=turn.policy.probe_s)
    return False


def _lose_silent(turn: Turn, name: str, node: Node, fault: Fault) -> bool:
    """Lose it, unless silence is only watched: then it stays a suspect, which is never used."""
    if turn.holds_ranks(name) and turn.is_shadowed("silence"):
        if node.status is not NodeStatus.UNKNOWN:
            held_back(turn, "silence", fault, "replace the node")
        node.status, node.heard_until = NodeStatus.UNKNOWN, turn.now
        return False
    lose(turn, fault)
    return True


def _watch(turn: Turn, name: str) -> None:
    """Queue the next look at the node: when it would be suspected or lost if no beat came."""
    node = turn.live.nodes[name]
    last = max(last_heard(turn, name), 0.0 if node.absent else turn.live.quiet_until)
    share = _SUSPECT_SHARE if node.status is NodeStatus.READY else 1.0
    node.look_at = max(last + turn.policy.silence_s * share, turn.live.cut_off_until)
    heapq.heappush(turn.live.silence, (node.look_at, name))


def expect(turn: Turn, name: str, heard_until: float) -> None:
    """A node that should be there but was not heard of in this driver life: unknown, and not for long."""
    turn.live.nodes[name] = Node("", NodeStatus.UNKNOWN, heard_until)
    _watch(turn, name)


def on_probe(turn: Turn, event: ProbeResult) -> None:
    """A node found dead is lost at once; one found alive waits for its beats until the bound."""
    node = turn.live.nodes.get(event.node)
    if node is None or node.status is not NodeStatus.SUSPECT or event.healthy is not False:
        return
    last = last_heard(turn, event.node)
    reason = f"{event.node} sent no beat for {turn.now - last:.1f} s and the probe failed: {event.detail}"
    cause = "planned" if event.node in turn.record.draining else "node_lost"
    fault = Fault(cause, reason, node=event.node, at=last, source="estimated", node_gone=True)
    _lose_silent(turn, event.node, node, fault)
