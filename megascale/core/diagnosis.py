"""A stall: suspect, collect evidence, act on positive evidence at once, else wait out a flap (design 4)."""

from __future__ import annotations

from megascale.core import effects as fx
from megascale.core.events import Evidence
from megascale.core.goodput import GoodputPhase
from megascale.core.lifecycle import stop
from megascale.core.recovery import Fault, charge, decide, open_incident
from megascale.core.state import Stage
from megascale.core.triage import Suspect, suspects
from megascale.core.turn import Turn


def on_stall(turn: Turn) -> None:
    """No step within the learnt bound: open an incident and ask every node what its ranks do."""
    record, live = turn.record, turn.live
    turn.clear_deadline("hang")
    stalled_s = turn.now - live.progress_at
    expected = live.clock.step_s() or 0.0
    reason = f"no step for {stalled_s:.1f} s in {live.phase}; a step takes {expected:.2f} s"
    at = live.progress_at + expected
    open_incident(turn, Fault("hang", reason, at=at, source="estimated"))
    record.stage = Stage.DIAGNOSING
    record.ledger.switch(GoodputPhase.DIAGNOSIS, turn.now, cause="hang")
    live.evidence = {}
    turn.emit(
        fx.CollectEvidence,
        reason,
        attempt=record.attempt,
        nodes=record.assignment,
        deadline_s=turn.policy.evidence_s,
    )
    turn.set_deadline("evidence", turn.policy.evidence_s)
    turn.set_deadline("flap", turn.policy.flap_tolerance_s)


def on_evidence(turn: Turn, event: Evidence) -> None:
    """Judge when the last node answered."""
    if turn.record.stage is not Stage.DIAGNOSING or event.node not in turn.record.assignment:
        return
    turn.live.evidence[event.node] = event.ranks
    if len(turn.live.evidence) == len(turn.record.assignment):
        judge(turn)


def judge(turn: Turn) -> None:
    """Act at once on positive evidence; otherwise only note it and wait for `flap`."""
    turn.clear_deadline("evidence")
    found = suspects(turn.live.evidence)
    incident = turn.record.incident
    if incident:
        for suspect in found[:6]:
            incident.add_evidence(suspect.why)
        for node in turn.record.assignment:
            if node not in turn.live.evidence:
                incident.add_evidence(f"{node} did not answer")
    if found and found[0].sure:
        _act(turn, found[0])


def on_flap_over(turn: Turn) -> None:
    """The stall outlasted a link flap: restart, on the best suspicion there is."""
    found = suspects(turn.live.evidence)
    _act(turn, found[0] if found else None)


def _act(turn: Turn, suspect: Suspect | None) -> None:
    incident = turn.record.incident
    if incident is None:
        return
    if turn.policy.shadow:
        incident.action, incident.decision = "none", "shadow mode: would restart the ranks"
        turn.clear_deadline("flap")
        return
    if suspect:
        incident.node, incident.rank = suspect.node, suspect.rank
        incident.reason = f"{suspect.why}; {incident.reason}"
    else:
        incident.add_evidence("inconclusive: no rank stands out")
    fault = Fault("hang", incident.reason, node=incident.node, rank=incident.rank)
    decision = decide(turn, fault)
    incident.action, incident.decision = decision.action, decision.reason
    incident.mark("decided", turn.now)
    turn.record.ledger.switch(GoodputPhase.RECOVERY, turn.now, cause="hang", node=incident.node)
    stop(turn, charge(turn, fault, incident, decision))
