"""Incidents: what is known of a fault, from when it happened until the job is back to speed."""

from __future__ import annotations

from dataclasses import dataclass

from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Action, Cause, Detector, Milestone, Source
from megascale.core.rules import model as rules
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import (
    INCIDENTS_KEPT,
    INCIDENTS_KEPT_LONG,
    TEXT_KEPT,
    Incident,
    JobState,
    MilestoneTime,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, before anything is decided.

    Attributes:
        at: when it happened; `source` says how that is known: observed, estimated or injected.
        node_gone: the node cannot be used any more, whatever is decided.
        consequence: may be the consequence of another rank's fault (a broken collective).
        action, rule, category: what the log rules say of the event or line behind it, None = nothing.
        error_type: of the rank's exit report.
        error: names the error apart from numbers and ranks; "" = none.
        advice: what a person can do about it.
        blameless: the node is sound, whatever happened on it.
        everywhere: other nodes had the same error.
        commits: checkpoints that are no longer trusted; None = if it comes to a roll-back, the newest.
    """

    cause: Cause
    reason: str
    node: str | None = None
    rank: int | None = None
    at: float = 0.0
    source: Source = Source.OBSERVED
    node_gone: bool = False
    consequence: bool = False
    evidence: tuple[str, ...] = ()
    action: rules.Action | None = None
    rule: str | None = None
    category: str | None = None
    error_type: str | None = None
    error: str = ""
    advice: str = ""
    blameless: bool = False
    everywhere: bool = False
    commits: tuple[Commit, ...] | None = None

    @property
    def blames_node(self) -> bool:
        """Whether the node is blamed: not for consequences and network faults, which a peer may have caused.

        Storage faults do count: a failing disk shows on the same node again, a shared file system on any.
        """
        sound = self.blameless or self.consequence or self.category == "network"
        return self.node is not None and not sound


def open_incident(ctx: StepContext, fault: Fault) -> Incident:
    """Open an incident. It closes one that is open, but a stall under diagnosis becomes this incident."""
    record = ctx.record
    if record.state is JobState.DIAGNOSING and record.incident and record.incident.cause == Cause.HANG:
        relabel(record.incident, fault)
        record.ledger.switch(GoodputPhase.RECOVERY, ctx.now, cause=fault.cause, node=fault.node)
        return record.incident
    close_incident(ctx, f"interrupted by i-{record.next_incident}")
    record.incident = _new(ctx, fault)
    _charge_detection(ctx, record.incident)
    return record.incident


def note_aside(ctx: StepContext, fault: Fault, action: Action, decision: str) -> Incident:
    """Put an incident that did not interrupt training into the history."""
    incident = _new(ctx, fault)
    incident.action, incident.decision = action, decision
    incident.mark(Milestone.DECIDED, ctx.now)
    incident.close("training was not interrupted")
    _archive(ctx, incident)
    return incident


def note_suppressed(ctx: StepContext, detector: Detector, fault: Fault, would: str) -> None:
    """Shadow mode of `detector`: count the fault and put what would have been done into the history."""
    count_suppressed(ctx, detector)
    note_aside(ctx, fault, Action.NONE, f"shadow mode: would {would}")


def count_suppressed(ctx: StepContext, detector: Detector) -> None:
    """One more time that `detector` would have acted."""
    ctx.record.shadowed[detector] = ctx.record.shadowed.get(detector, 0) + 1


def relabel(incident: Incident, fault: Fault) -> None:
    """Change the incident to `fault`, which turned out to be behind it."""
    incident.add_evidence(f"first seen as: {incident.reason}")
    incident.cause, incident.reason = fault.cause, fault.reason[:TEXT_KEPT]
    incident.consequence, incident.error = fault.consequence, fault.error
    incident.node, incident.rank = fault.node, fault.rank
    if fault.at and fault.at < incident.milestones[Milestone.DETECTED].at:
        incident.milestones[Milestone.FAULT] = MilestoneTime(fault.at, fault.source)
    for line in fault.evidence:
        incident.add_evidence(line)


def close_incident(ctx: StepContext, outcome: str) -> None:
    """Move the open incident, if any, to the history."""
    incident = ctx.record.incident
    if incident is None:
        return
    incident.close(outcome)
    ctx.record.incident = None
    _archive(ctx, incident)


def _archive(ctx: StepContext, incident: Incident) -> None:
    record = ctx.record
    if record.spec.previous is None:
        incident.blamed = {}  # no revision can be reverted that would take it back
    record.incidents.append(incident)
    del record.incidents[:-INCIDENTS_KEPT]
    for older in record.incidents[:-INCIDENTS_KEPT_LONG]:
        older.fade()


def _new(ctx: StepContext, fault: Fault) -> Incident:
    record = ctx.record
    incident = Incident(
        id=f"i-{record.next_incident}",
        cause=fault.cause,
        reason=fault.reason[:TEXT_KEPT],
        node=fault.node,
        rank=fault.rank,
        attempt=record.attempt,
        fault_step=ctx.live.step,
        consequence=fault.consequence,
        error=fault.error,
    )
    record.next_incident += 1
    incident.mark(Milestone.FAULT, min(fault.at or ctx.now, ctx.now), fault.source)
    incident.mark(Milestone.DETECTED, ctx.now)
    for line in fault.evidence:
        incident.add_evidence(line)
    return incident


def _charge_detection(ctx: StepContext, incident: Incident) -> None:
    """Move the time since the fault to detection, at most since the phase began: node clocks may be off."""
    ledger = ctx.record.ledger
    ledger.charge(ctx.now)
    if ledger.phase is GoodputPhase.PRODUCTIVE:
        unseen_s = ctx.now - max(incident.milestones[Milestone.FAULT].at, ledger.began)
        ledger.blame(incident.cause, incident.node)
        ledger.move(GoodputPhase.PRODUCTIVE, GoodputPhase.DETECTION, unseen_s)
    ledger.switch(GoodputPhase.RECOVERY, ctx.now, cause=incident.cause, node=incident.node)
