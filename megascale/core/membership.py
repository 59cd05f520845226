"""Who is there: joins, losses, silence (suspect, probe, verdict)."""

from __future__ import annotations

import heapq

from megascale.core import effects as fx
from megascale.core.events import JobReport, NodeGone, NodeJoined, ProbeResult
from megascale.core.lifecycle import assemble, replenish
from megascale.core.recovery import Fault, respond
from megascale.core.state import Node, NodeStatus, Stage
from megascale.core.turn import Turn

_SUSPECT_SHARE = 2.0 / 3.0


def on_joined(turn: Turn, event: NodeJoined) -> None:
    """A new agent, or a known one that reconnected."""
    record, live = turn.record, turn.live
    known = live.nodes.get(event.node)
    if known is None or known.status is NodeStatus.GONE:
        record.outstanding = max(0, record.outstanding - 1)
    if turn.is_excluded(event.node):
        turn.emit(fx.Release, record.excluded[event.node].reason, node=event.node)
        return
    live.nodes[event.node] = Node(event.incarnation, NodeStatus.READY, turn.now, dict(event.labels))
    _watch(turn, event.node)
    if record.outstanding == 0:
        turn.clear_deadline("acquired")
        record.refusals = 0
    if _lost_its_ranks(turn, event):
        reason = f"the agent of {event.node} restarted and its ranks are gone"
        respond(turn, Fault("node_lost", reason, node=event.node, at=turn.now, source="estimated"))
    elif record.stage is Stage.ASSEMBLING:
        assemble(turn)


def _lost_its_ranks(turn: Turn, event: NodeJoined) -> bool:
    assigned = event.node in turn.record.assignment and turn.ranks_active()
    return assigned and event.attempt < turn.record.attempt and not turn.is_pending(fx.Launch)


def on_gone(turn: Turn, event: NodeGone) -> None:
    """The fleet is sure; no probe is needed. A node that dies before its hello is asked for again, later."""
    if event.node not in turn.live.nodes:
        turn.record.outstanding = max(0, turn.record.outstanding - 1)
        turn.set_deadline("acquireRetry", turn.policy.acquire_retry_s)
        return
    node = turn.node(event.node, event.incarnation)
    if node is None or node.status is NodeStatus.GONE:
        return
    source = "injected" if event.injected else "observed"
    cause = "planned" if event.planned else "node_lost"
    lose(turn, Fault(cause, event.reason, node=event.node, at=event.at, source=source, node_gone=True))


def lose(turn: Turn, fault: Fault) -> None:
    """Mark the node gone and act if it held ranks."""
    record = turn.record
    turn.live.nodes[fault.node].status = NodeStatus.GONE
    if fault.node in record.assignment and turn.ranks_active():
        respond(turn, fault)
        return
    if record.incident and fault.node in record.assignment:
        record.incident.add_evidence(f"then {fault.reason}")
    if record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        replenish(turn)


def heard(turn: Turn, node: Node) -> None:
    """A beat arrived."""
    node.heard_until = turn.now
    node.absent = False
    if node.status in (NodeStatus.SUSPECT, NodeStatus.UNKNOWN):
        node.status = NodeStatus.READY


def heard_all(turn: Turn, event: JobReport) -> None:
    """Beats of the whole job, with a promise until `quiet_until` for all but `absent` nodes."""
    live = turn.live
    for name in event.absent:
        node = live.nodes.get(name)
        if node is not None and not node.absent:
            node.heard_until = _last_heard(turn, node)
            node.absent = True
            _watch(turn, name)
    live.heard_all_at, live.quiet_until = turn.now, event.quiet_until


def check_silence(turn: Turn) -> None:
    """Suspect and probe nodes at two thirds of the silence bound; lose them at the bound."""
    queue = turn.live.silence
    while queue and queue[0][0] <= turn.now:
        _, name = heapq.heappop(queue)
        node = turn.live.nodes.get(name)
        if node is None or node.status is NodeStatus.GONE:
            continue
        if not _judge_silence(turn, name, node):
            _watch(turn, name)


def _judge_silence(turn: Turn, name: str, node: Node) -> bool:
    """Whether the node is lost."""
    last = _last_heard(turn, node)
    silent_s = turn.now - last
    if silent_s >= turn.policy.silence_s:
        reason = f"{name} sent no beat for {silent_s:.1f} s"
        lose(turn, Fault("node_lost", reason, node=name, at=last, source="estimated", node_gone=True))
        return True
    if silent_s >= turn.policy.silence_s * _SUSPECT_SHARE and node.status is NodeStatus.READY:
        node.status = NodeStatus.SUSPECT
        reason = f"{name} sent no beat for {silent_s:.1f} s"
        turn.emit(fx.Probe, reason, node=name, deadline_s=turn.policy.probe_s)
    return False


def _last_heard(turn: Turn, node: Node) -> float:
    if node.absent:
        return node.heard_until
    return max(node.heard_until, turn.live.heard_all_at, min(turn.live.quiet_until, turn.now))


def _watch(turn: Turn, name: str) -> None:
    """Queue the next look at the node: when it would be suspected or lost if no beat came."""
    node = turn.live.nodes[name]
    last = max(_last_heard(turn, node), 0.0 if node.absent else turn.live.quiet_until)
    share = 1.0 if node.status is NodeStatus.SUSPECT else _SUSPECT_SHARE
    heapq.heappush(turn.live.silence, (last + turn.policy.silence_s * share, name))


def on_probe(turn: Turn, event: ProbeResult) -> None:
    """A node found dead is lost at once; one found alive waits for its beats until the bound."""
    node = turn.live.nodes.get(event.node)
    if node is None or node.status is not NodeStatus.SUSPECT or event.healthy is not False:
        return
    last = _last_heard(turn, node)
    reason = f"{event.node} sent no beat for {turn.now - last:.1f} s and the probe failed: {event.detail}"
    lose(turn, Fault("node_lost", reason, node=event.node, at=last, source="estimated", node_gone=True))
