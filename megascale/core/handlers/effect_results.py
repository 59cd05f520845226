"""How effects went, and what is done when they fail or are not answered in time."""

from __future__ import annotations

from typing import Final

from megascale.core.act.lifecycle import assemble, finish, replenish, stopped
from megascale.core.act.recovery import respond
from megascale.core.contract import effects as fx
from megascale.core.contract.events import EffectDone, EffectFailed, FleetRefused, ProbeResult
from megascale.core.handlers import numerics, stragglers
from megascale.core.handlers.membership import leave_behind, lose
from megascale.core.handlers.progress import begin_unwatched
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault
from megascale.core.state.record import NodeStatus, Pending, Stage

_RETRY_LIMIT_S: Final = 60.0


def on_done(turn: Turn, event: EffectDone) -> None:
    """Go on with what waited for the effect."""
    record = turn.record
    pending = record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    if pending.kind == "Kill" and record.stage is Stage.STOPPING:
        _on_killed(turn, event.detail.get("unreaped"))
    elif pending.kind == "CheckNodes":
        numerics.on_checked(turn, event.detail.get("convicted"))
    elif pending.kind == "Launch" and record.stage is Stage.LAUNCHING:
        if record.incident:
            record.incident.mark("launched", turn.now)
        if not turn.policy.reports_steps:
            begin_unwatched(turn)


def _on_killed(turn: Turn, unreaped: object) -> None:
    """Go on without the nodes whose ranks could not be reaped; the last of them may end the wait itself."""
    for name in unreaped if isinstance(unreaped, list) else ():
        leave_behind(turn, str(name))
    if turn.record.stage is Stage.STOPPING:
        stopped(turn)


def on_failed(turn: Turn, event: EffectFailed) -> None:
    """A launch that could not be carried out is a fault of the nodes named; others have a way round."""
    pending = turn.record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    stage = turn.record.stage
    if pending.kind == "Launch" and stage is Stage.LAUNCHING:
        _launch_failed(turn, event)
    elif pending.kind == "SaveNow" and stage is Stage.SAVING:
        turn.set_deadline("save", 0.0)
    elif pending.kind == "CheckNodes":
        numerics.on_check_overdue(turn)
    elif pending.kind == "Acquire":
        _not_acquired(turn, pending, event.reason)
    elif pending.kind == "RestartSlot":
        _not_restarted(turn, pending, event.reason)
    elif pending.kind == "Probe":
        _not_probed(turn, event.effect_id, pending, event.reason)


def _not_probed(turn: Turn, effect_id: str, pending: Pending, reason: str) -> None:
    """Nobody could tell: unknown is not healthy, but it convicts nobody either."""
    stragglers.on_probe(turn, ProbeResult(effect_id, str(pending.data.get("node", "")), None, reason))


def _launch_failed(turn: Turn, event: EffectFailed) -> None:
    node = event.nodes[0] if len(event.nodes) == 1 else ""
    names = f" on {', '.join(event.nodes[:8])}" if event.nodes else ""
    respond(turn, Fault("launch_failed", f"launch failed{names}: {event.reason}", node=node, at=turn.now))


def on_refused(turn: Turn, event: FleetRefused) -> None:
    """The fleet cannot or will not."""
    pending = turn.record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    if pending.kind == "Acquire":
        _not_acquired(turn, pending, event.reason)
    elif pending.kind == "RestartSlot":
        _not_restarted(turn, pending, event.reason)
    elif pending.kind == "Probe":
        _not_probed(turn, event.effect_id, pending, event.reason)
    elif pending.kind == "RequestQuarantine" and turn.record.incident:
        turn.record.incident.add_evidence(f"quarantine refused: {event.reason}")


def _not_acquired(turn: Turn, pending: Pending, reason: str) -> None:
    """Back off and ask again; give up only when the job has waited in vain too often."""
    record = turn.record
    count = pending.data.get("count", 0)
    record.outstanding = max(0, record.outstanding - (count if isinstance(count, int) else 0))
    record.refusals += 1
    if record.refusals == 1:
        turn.emit(fx.Page, f"the fleet refused a node: {reason}")
    if record.stage is not Stage.ASSEMBLING:
        record.refusals = min(record.refusals, turn.policy.acquire_tries // 2)
    elif record.refusals >= turn.policy.acquire_tries:
        why = f"no nodes after {record.refusals} tries: {reason}"
        turn.emit(fx.Page, f"job fails: {why}")
        finish(turn, "failed", why)
        return
    delay = min(_RETRY_LIMIT_S, turn.policy.acquire_retry_s * 2 ** min(max(record.refusals - 1, 0), 6))
    turn.set_deadline("acquireRetry", delay)


def _not_restarted(turn: Turn, pending: Pending, reason: str) -> None:
    name = str(pending.data.get("node", ""))
    node = turn.live.nodes.get(name)
    if node is not None and node.status is NodeStatus.UNKNOWN:
        text = f"the container of {name} was not restarted: {reason}"
        lose(turn, Fault("node_lost", text, node=name, at=turn.now, node_gone=True))


def on_acquired_overdue(turn: Turn) -> None:
    """Nodes that were promised did not come."""
    for effect_id, pending in list(turn.record.pending.items()):
        if pending.kind == "Acquire":
            del turn.record.pending[effect_id]
    turn.record.outstanding = 0
    _not_acquired(turn, Pending("Acquire", {}), f"none came in {turn.policy.startup_s:g} s")


def on_startup_overdue(turn: Turn) -> None:
    """No first step in time; a node is named only if it alone is late."""
    live, record = turn.live, turn.record
    record.clock.forget_launches()
    late = [node for node in record.assignment if node not in live.milestones.first_step]
    bound_s = turn.now - record.ledger.began
    names = ", ".join(late[:5])
    reason = f"no first step within {bound_s:.0f} s (health.startupSeconds); waiting for {names}"
    respond(turn, Fault("launch_failed", reason, node=late[0] if len(late) == 1 else "", at=turn.now))


def reassemble(turn: Turn) -> None:
    """Time to look again for the nodes that are missing."""
    if turn.record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        replenish(turn)
