"""Handles stalls: collects evidence, acts at once if it is positive, else waits out a link flap."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.act.lifecycle import stop
from megascale.core.act.recovery import charge, note_decision
from megascale.core.contract import effects as fx
from megascale.core.contract.events import Evidence
from megascale.core.contract.vocabulary import Action, Cause, Detector, Source, Timer
from megascale.core.decide.attribution import hardware_fault, suspicious
from megascale.core.decide.ladder import decide
from megascale.core.decide.partition_guard import nobody_is_heard
from megascale.core.decide.triage import Suspect, suspects
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.incidents import Fault, count_suppressed, open_incident, relabel
from megascale.core.state.record import Incident, JobState, shortened

EVIDENCE_S: Final = 10.0
"""Nodes that have not sent evidence of their ranks after this time are judged without it."""


def on_stall(ctx: StepContext) -> None:
    """No step within the learnt bound: open an incident and ask every node what its ranks do."""
    if nobody_is_heard(ctx):
        ctx.set_deadline(Timer.HANG, ctx.policy.silence_s)
        return
    record, live = ctx.record, ctx.live
    stalled_s = ctx.now - live.progress_at
    expected = record.clock.step_s() or 0.0
    phase = ", ".join(live.phases.current()) or live.phase
    reason = f"no step for {stalled_s:.1f} s in {phase}; a step takes {expected:.2f} s"
    at = live.progress_at + expected
    open_incident(ctx, Fault(Cause.HANG, reason, at=at, source=Source.ESTIMATED))
    record.state = JobState.DIAGNOSING
    ctx.clear_deadline(Timer.GROW)
    record.ledger.switch(GoodputPhase.DIAGNOSIS, ctx.now, cause=Cause.HANG)
    _ask(ctx, reason)
    ctx.set_deadline(Timer.FLAP, ctx.policy.flap_tolerance_s)


def _ask(ctx: StepContext, reason: str) -> None:
    """Ask every node of the attempt for evidence."""
    record, live = ctx.record, ctx.live
    live.evidence, live.asked = {}, frozenset(record.assignment)
    collect = ctx.emit(
        fx.CollectEvidence,
        reason,
        attempt=record.attempt,
        nodes=record.assignment,
        deadline_s=EVIDENCE_S,
    )
    live.evidence_id = collect.effect_id
    ctx.set_deadline(Timer.EVIDENCE, EVIDENCE_S)


def ask_again(ctx: StepContext) -> None:
    """A driver that took over a stall under diagnosis has none of the evidence that its predecessor had."""
    if ctx.record.state is JobState.DIAGNOSING and not ctx.is_pending(fx.CollectEvidence):
        incident = ctx.record.incident
        _ask(ctx, incident.reason if incident else "the ranks stall")


def on_evidence(ctx: StepContext, event: Evidence) -> None:
    """Keep the evidence of a node and judge once all have answered; earlier answers are ignored."""
    live = ctx.live
    if ctx.record.state is not JobState.DIAGNOSING:
        return
    if live.evidence_id and event.effect_id != live.evidence_id:
        return
    if not live.asked:
        live.asked = frozenset(ctx.record.assignment)
    if event.node not in live.asked:
        return
    live.evidence[event.node] = event.ranks
    if len(live.evidence) == len(live.asked):
        judge(ctx)


def judge(ctx: StepContext) -> None:
    """Act at once on positive evidence; otherwise note it and wait for the FLAP timer."""
    record, incident = ctx.record, ctx.record.incident
    ctx.clear_deadline(Timer.EVIDENCE)
    ctx.drop_pending(fx.CollectEvidence)
    if incident is None:
        return
    signs = suspicious(ctx, record.assignment, ctx.live.progress_at - ctx.policy.correlate_s)
    found = _suspects(ctx)
    for suspect in found[:6]:
        incident.add_evidence(suspect.why)
    if signs is not None:
        _act(ctx, incident, hardware_fault(signs, reason=f"; then {incident.reason}"))
    elif found and found[0].sure:
        _act(ctx, incident, _fault(incident, found[0]))


def on_flap_over(ctx: StepContext) -> None:
    """The stall lasted longer than a link flap: restart, and blame the best suspect there is."""
    incident = ctx.record.incident
    if incident is None:
        return
    found = _suspects(ctx)
    if not found:
        incident.add_evidence("inconclusive: no rank stands out")
    _act(ctx, incident, _fault(incident, found[0] if found else None))


def _suspects(ctx: StepContext) -> list[Suspect]:
    """Ranks that stand out by their evidence, then a node that alone did not answer."""
    record, live = ctx.record, ctx.live
    found = suspects(live.evidence, ranks=record.ranks, stages=ctx.policy.pipeline)
    silent = [node for node in record.assignment if node not in live.evidence]
    if live.evidence and len(silent) == 1:
        found.append(Suspect(silent[0], None, f"{silent[0]} did not answer, all others did", sure=False))
    return found


def _fault(incident: Incident, suspect: Suspect | None) -> Fault:
    if suspect is None:
        return Fault(Cause.HANG, incident.reason)
    return Fault(Cause.HANG, f"{suspect.why}; {incident.reason}", node=suspect.node, rank=suspect.rank)


def _act(ctx: StepContext, incident: Incident, fault: Fault) -> None:
    decision = decide(ctx, fault)
    if ctx.is_shadowed(Detector.HANG):
        _hold_back(ctx, incident, f"shadow mode: would {decision.action}, since {fault.reason}")
        return
    if fault.cause != Cause.HANG:
        relabel(incident, fault)
    incident.node, incident.rank, incident.reason = fault.node, fault.rank, shortened(fault.reason)
    note_decision(ctx, incident, decision)
    ctx.record.ledger.switch(GoodputPhase.RECOVERY, ctx.now, cause=fault.cause, node=fault.node)
    stop(ctx, charge(ctx, replace(fault, at=ctx.now), incident, decision))


def _hold_back(ctx: StepContext, incident: Incident, decision: str) -> None:
    """Shadow mode: page what would have been done, and judge again while the stall lasts."""
    if not incident.decision:
        count_suppressed(ctx, Detector.HANG)
        ctx.emit(fx.Page, f"{incident.reason}; {decision}", incident=incident.id)
    incident.action, incident.decision = Action.NONE, decision
    ctx.set_deadline(Timer.FLAP, ctx.policy.startup_s)
