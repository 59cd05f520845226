"""Handles hardware events and matched log lines: some act at once or when they recur, some explain exits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from megascale.core.act import node_changes
from megascale.core.act.exclusion import exclude, notify_refusal
from megascale.core.act.lifecycle import replenish
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract.events import HardwareEvent, LogMatch
from megascale.core.contract.vocabulary import Action, Cause, Detector, Milestone
from megascale.core.decide.attribution import EXPLAINABLE, MACHINE, correlated, hardware_fault
from megascale.core.decide.breakers import exclusion_bound
from megascale.core.rules import HardwareIncident, RuleMatch, RuleSet, classify_text, rule_set
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside, note_suppressed
from megascale.core.state.record import JobState

_SIGNALS_KEPT: Final = 256
_ROW_REMAP: Final = "xid-63"  # harmless alone, but not beside a double-bit error
_ALERTS: Final = {
    "ecc": "gpu",
    "nvlink": "gpu",
    "pcie": "gpu",
    "thermal": "gpu",
    "xid": "gpu",
    "nic": "network",
    "disk": "storage",
    "memory": "host",
}


def on_log(ctx: StepContext, event: LogMatch) -> None:
    """A matched line of a rank's log, or of the kernel log (attempt 0)."""
    if event.attempt in (0, ctx.record.attempt):
        at = event.at or ctx.now
        match = _match(
            at, event.node, event.rule, category=event.category, action=event.action, line=event.line
        )
        _take(ctx, match)


def on_hardware(ctx: StepContext, event: HardwareEvent) -> None:
    """A device event, judged by the agent's rules, else by its sign, code and text."""
    if event.sign == "drain":
        node_changes.on_drain_notice(ctx, event.node, event.text or "its owner announced it")
    else:
        _take(ctx, match_of(event, ctx.now, rule_set(ctx.policy.log_rules)))


def match_of(event: HardwareEvent, now: float, rules: RuleSet) -> RuleMatch:
    """The event as a match of a log rule."""
    at, text = event.at or now, event.text or f"{event.sign} {event.code or ''}".strip()
    if event.action:
        rule = event.rule or event.sign
        category = event.category or _guess(event)
        return _match(at, event.node, rule, category=category, action=event.action, line=text)
    if event.sign == "xid" and (known := rules.named(f"xid-{event.code}")):
        return _match(at, event.node, known.id, category=known.category, action=known.action, line=text)
    verdict = classify_text(event.text, rules, node=event.node)
    if verdict.rule is not None:
        return RuleMatch.of(verdict, at=at, node=event.node)
    return _match(at, event.node, event.sign, category=_guess(event), action="alert", line=text)


def _guess(event: HardwareEvent) -> str:
    return _ALERTS.get(event.sign, "host")


def _match(at: float, node: str, rule: str, *, category: str, action: str, line: str) -> RuleMatch:
    return RuleMatch(at, node, rule, cast(Any, category), cast(Any, action), line=line)


def _take(ctx: StepContext, match: RuleMatch) -> None:
    """Keep the match, and act if it and those around it are enough."""
    live = ctx.live
    if match.node not in live.nodes or (match.action == "none" and match.rule != _ROW_REMAP):
        return
    policy = ctx.policy
    oldest = ctx.now - max(policy.attribution_before_s, policy.alert_window_s, policy.correlate_s)
    live.signals = [signal for signal in live.signals if signal.at >= oldest][1 - _SIGNALS_KEPT :]
    live.signals.append(match)
    found = next((i for i in correlated(ctx, live.signals) if match in i.matches), None)
    if found is None:
        return
    if ctx.is_excluded(match.node):
        _note_more(ctx, match)
        return
    if found.kind != "node":
        _note(ctx, found)
        return
    found = _recurring(ctx, match, found)
    if found.category not in MACHINE or found.action not in ("restart", "replace_node"):
        return
    fault = hardware_fault(found)
    if _explains_open_incident(ctx, fault):
        reattribute(ctx, fault)
    elif found.action == "replace_node":
        _convict(ctx, match.node, fault)
    elif ctx.record.state is JobState.DIAGNOSING and ctx.holds_ranks(match.node):
        respond(ctx, fault)


def _note(ctx: StepContext, found: HardwareIncident) -> None:
    if ctx.record.incident:
        ctx.record.incident.add_evidence(found.reason)


def _note_more(ctx: StepContext, match: RuleMatch) -> None:
    """Add what an excluded node still reports to the incident that excluded it."""
    incident = ctx.record.incident
    if incident and incident.node == match.node:
        incident.add_evidence(match.line or match.rule)


def _recurring(ctx: StepContext, match: RuleMatch, found: HardwareIncident) -> HardwareIncident:
    """Network alerts that recur within `alert_window_s` are a reason to replace the node (ByteRobust)."""
    if found.action != "alert" or match.category != "network":
        return found
    start = ctx.now - ctx.policy.alert_window_s
    alerts = [
        s for s in ctx.live.signals if s.node == match.node and s.category == "network" and s.at >= start
    ]
    if len(alerts) < ctx.policy.tolerated_alerts:
        return found
    minutes = ctx.policy.alert_window_s / 60.0
    reason = f"{len(alerts)} network alerts on {match.node} within {minutes:g} min: {match.rule}"
    return replace(found, action="replace_node", reason=reason, matches=tuple(alerts))


def _explains_open_incident(ctx: StepContext, fault: Fault) -> bool:
    """Whether `fault` is behind the open incident, whose ranks are being stopped."""
    incident = ctx.record.incident
    if incident is None or ctx.record.state not in (JobState.STOPPING, JobState.ASSEMBLING):
        return False
    if incident.cause not in EXPLAINABLE or fault.node not in ctx.record.assignment:
        return False
    if fault.category == "oom" and fault.node == incident.node and not incident.consequence:
        for line in fault.evidence:
            incident.add_evidence(line)  # the exit itself says more: which rank, and how it ended
        return False
    recent = ctx.now - incident.milestones[Milestone.FAULT].at <= ctx.policy.attribution_after_s
    return recent and (incident.consequence or incident.node in (None, fault.node))


def _sharpens_open_incident(ctx: StepContext, fault: Fault) -> bool:
    """Whether the recovery under way is from this fault, by a milder action than it needs.

    A rank dies of a broken device seconds before the inspection of the node reports the device.
    """
    incident = ctx.record.incident
    if incident is None or ctx.record.state not in (
        JobState.STOPPING,
        JobState.ASSEMBLING,
        JobState.LAUNCHING,
    ):
        return False
    if incident.cause not in (*EXPLAINABLE, Cause.HARDWARE) or incident.action == Action.REPLACE_NODE:
        return False
    recent = ctx.now - incident.milestones[Milestone.FAULT].at <= ctx.policy.attribution_after_s
    same = incident.consequence or incident.node in (None, fault.node)
    return recent and same and fault.node in ctx.record.assignment


def _convict(ctx: StepContext, node: str, fault: Fault) -> None:
    """Replace or exclude a node whose hardware is certainly at fault, whether its ranks failed yet or not."""
    if ctx.is_shadowed(Detector.HARDWARE):
        note_suppressed(ctx, Detector.HARDWARE, fault, "replace the node")
        return
    if bound := exclusion_bound(ctx):
        incident = note_aside(ctx, fault, Action.NONE, bound)
        notify_refusal(ctx, node, f"{fault.reason}; {node} is not replaced: {bound}", incident)
        return
    if _sharpens_open_incident(ctx, fault):
        reattribute(ctx, fault)
        return
    if ctx.holds_ranks(node):
        respond(ctx, fault)
        return
    exclude(ctx, node, note_aside(ctx, fault, Action.REPLACE_NODE, "the node is not used any more"))
    replenish(ctx)
