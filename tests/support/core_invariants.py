"""What holds of the core's state after every event, whatever the event was."""

from __future__ import annotations

import dataclasses
from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.contract.codec import decode, encode
from megascale.core.contract.vocabulary import Timer
from megascale.core.machine import Core
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import Incident, JobRecord, JobState, NodeStatus

ACTIVE: Final = {JobState.LAUNCHING, JobState.RUNNING, JobState.DIAGNOSING, JobState.SAVING}
HOLDS_NODES: Final = {*ACTIVE, JobState.ASSEMBLING, JobState.STOPPING}
TIMER_IN: Final = {
    Timer.STARTUP: {JobState.LAUNCHING},
    Timer.KILL: {JobState.STOPPING},
    Timer.HANG: {JobState.RUNNING},
    Timer.EVIDENCE: {JobState.DIAGNOSING},
    Timer.FLAP: {JobState.DIAGNOSING},
    Timer.SAVE: {JobState.SAVING},
    Timer.LEAVING: ACTIVE,
    Timer.SHRINK: {JobState.ASSEMBLING},
    Timer.CHECK: {JobState.ASSEMBLING},
    Timer.GROW: {JobState.RUNNING},
    Timer.ACQUIRE_RETRY: HOLDS_NODES,
    Timer.ACQUIRED: HOLDS_NODES,
    Timer.APPLY_SPEC: HOLDS_NODES,
    Timer.RECONNECT: {*HOLDS_NODES, JobState.SUSPENDED},
}
"""The states in which each timer may be armed: one that is left over would fire into a later state."""
NEEDED_TIMER: Final = {
    JobState.LAUNCHING: Timer.STARTUP,
    JobState.STOPPING: Timer.KILL,
    JobState.DIAGNOSING: Timer.FLAP,
    JobState.SAVING: Timer.SAVE,
}
"""The timer that ends a state which waits for answers."""
PENDING_IN: Final = {
    "Launch": ACTIVE,
    "Kill": {JobState.STOPPING},
    "CheckNodes": {JobState.ASSEMBLING},
    "SaveNow": {JobState.RUNNING, JobState.DIAGNOSING, JobState.SAVING},
    "Acquire": HOLDS_NODES,
}
"""The states in which an answer to the effect is still of use."""
TIME_COUNTS_AS: Final = {
    JobState.LAUNCHING: {GoodputPhase.STARTUP, GoodputPhase.RECOVERY},
    JobState.RUNNING: {GoodputPhase.PRODUCTIVE},
    JobState.DIAGNOSING: {GoodputPhase.DIAGNOSIS},
    JobState.SUSPENDED: {GoodputPhase.SUSPENDED},
    JobState.FINISHED: {GoodputPhase.SUSPENDED},
}


def check(core: Core, effects: list[fx.Effect]) -> None:
    """Assert the invariants after an event that decided `effects`."""
    _check_timers(core)
    _check_pending(core)
    _check_nodes(core)
    if effects:
        _check_record(core.record)
    for effect in effects:
        _check_effect(core, effect)


def _check_timers(core: Core) -> None:
    state, armed = core.record.state, core.record.deadlines
    assert not [str(name) for name in armed if state not in TIMER_IN[name]], f"armed while {state}"
    assert state not in NEEDED_TIMER or NEEDED_TIMER[state] in armed, f"{state} would wait for ever"
    ledger = core.record.ledger
    assert ledger.phase in TIME_COUNTS_AS.get(state, {ledger.phase}), f"{state} counts as {ledger.phase}"


def _check_pending(core: Core) -> None:
    record = core.record
    kinds = {pending.kind for pending in record.pending.values()}
    assert not [kind for kind in kinds if record.state not in PENDING_IN.get(kind, {record.state})]
    assert ("Kill" in kinds) == (record.state is JobState.STOPPING)
    assert ("CheckNodes" in kinds) == (Timer.CHECK in record.deadlines)
    has_plan, leaves = record.plan is not None, record.state in (JobState.SAVING, JobState.STOPPING)
    assert has_plan == leaves or record.state is JobState.ASSEMBLING
    assert record.waiting_since == 0.0 or record.state in (JobState.ASSEMBLING, JobState.STOPPING)


def _check_nodes(core: Core) -> None:
    record, live = core.record, core.live
    watched = set(live.silence)
    for name, node in live.nodes.items():
        gone = node.status is NodeStatus.GONE
        assert gone or not node.released, f"{name} was released and is {node.status}"
        assert gone or (node.look_at, name) in watched, f"the silence of {name} would not be noticed"
        unwanted = name in record.excluded or name in record.draining
        stopping = record.state in ACTIVE or record.state is JobState.STOPPING
        in_use = name in record.assignment and stopping
        assert gone or in_use or not unwanted or record.state is JobState.FINISHED, (
            f"{name} is kept for nothing"
        )


def _check_record(record: JobRecord) -> None:
    """It comes back equal from its stored form, so every field has the type that it declares."""
    assert decode(JobRecord, encode(record)) == record
    open_one = [record.incident] if record.incident else []
    for incident in (*record.incidents, *open_one):
        _check_incident(incident)
    assert all(incident.outcome for incident in record.incidents)
    assert record.incident is None or record.incident.outcome is None


def _check_incident(incident: Incident) -> None:
    assert incident.reason
    assert bool(incident.decision) == (incident.action is not None), incident
    assert incident.decision.strip() == incident.decision


def _check_effect(core: Core, effect: fx.Effect) -> None:
    record = core.record
    assert decode(type(effect), encode(effect)) == effect
    assert effect.reason
    assert effect.reason.strip() == effect.reason
    fields = {field.name: getattr(effect, field.name) for field in dataclasses.fields(effect)}
    known = {incident.id for incident in record.incidents} | {record.incident and record.incident.id}
    assert fields.get("incident") in {None, *known}, effect
    assert fields.get("attempt", record.attempt) <= record.attempt
    assert fields.get("deadline_s", 1.0) > 0.0
