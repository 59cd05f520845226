"""The first event of a driver's life: pending effects again, nodes unknown until they report."""

from __future__ import annotations

from typing import Final

from megascale.core.act.graceful_stop import leave
from megascale.core.act.lifecycle import assemble
from megascale.core.contract.events import DriverStarted
from megascale.core.decide.nodecheck import CHECK
from megascale.core.handlers.membership import expect
from megascale.core.state.context import Turn
from megascale.core.state.record import Plan, Stage

_WAITS_FOR_NODES: Final = (
    "kill",
    "startup",
    "evidence",
    "flap",
    "save",
    "leaving",
    "shrink",
    "acquired",
    CHECK,
)


def on_driver_started(turn: Turn, event: DriverStarted) -> None:
    """Take over from the record: nothing that passed while no driver was there is held against anyone."""
    record, live, policy = turn.record, turn.live, turn.policy
    succeeds = record.ledger.started_at > 0
    record.term = event.term
    record.ledger.start(turn.now)
    turn.effects += turn.pending_effects()
    resumed = record.lineage.get(record.attempt)
    live.step, live.progress_at = resumed.step if resumed else 0, turn.now
    live.evidence_id = next((i for i, p in record.pending.items() if p.kind == "CollectEvidence"), "")
    if record.stage is Stage.FINISHED:
        return
    for name in (*record.assignment, *record.spares):
        if name not in record.excluded and name not in record.lost:
            expect(turn, name, turn.now + max(0.0, policy.reconnect_grace_s - policy.silence_s))
    if not succeeds:
        assemble(turn)
        return
    # Agents reconnect within the grace time; until then missing nodes are not replaced.
    turn.set_deadline("reconnect", policy.reconnect_grace_s)
    for name in _WAITS_FOR_NODES:
        if name in record.deadlines:
            record.deadlines[name] = max(
                record.deadlines[name], turn.now + policy.reconnect_grace_s + _slack(turn, name)
            )
    turn.clear_deadline("hang")
    if record.waiting_since:
        record.waiting_since = turn.now
    if record.stage is Stage.RUNNING:
        turn.set_deadline("hang", policy.reconnect_grace_s + policy.startup_s)
    if policy.suspend:
        leave(turn, Plan("suspend", "spec.suspend is set"))
    elif (record.stage is Stage.SUSPENDED and record.suspended_by_spec) or (
        record.stage is Stage.ASSEMBLING and not record.assignment
    ):
        assemble(turn)


def _slack(turn: Turn, timer: str) -> float:
    """What the answer is allowed to take when asked again."""
    policy = turn.policy
    known = {
        "kill": policy.kill_s,
        "evidence": policy.evidence_s,
        "save": policy.save_s,
        CHECK: policy.check_s,
        "shrink": policy.shrink_after_s - policy.reconnect_grace_s,
    }
    return max(0.0, known.get(timer, policy.silence_s))
