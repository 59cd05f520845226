"""Hardware events and log lines: some act at once, some when they recur, others explain exits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from megascale.core.act import drain
from megascale.core.act.lifecycle import replenish
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract.events import HardwareEvent, LogMatch
from megascale.core.decide.attribution import EXPLAINABLE, MACHINE, correlated, hardware_fault
from megascale.core.decide.blame import exclude, tell_refusal
from megascale.core.decide.breakers import exclusion_bound
from megascale.core.decide.shadow import held_back
from megascale.core.rules import BUILTIN, HardwareIncident, Hit, RuleSet, classify_text
from megascale.core.rules.xid import XID_CODES
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import Stage

_SIGNALS_KEPT: Final = 256
_ROW_REMAP: Final = "xid-63"  # harmless alone, but not beside a double-bit error
_RULES: Final = RuleSet(BUILTIN)
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


def on_log(turn: Turn, event: LogMatch) -> None:
    """A line of a rank's log, or of the kernel log (attempt 0)."""
    if event.attempt in (0, turn.record.attempt):
        at = event.at or turn.now
        hit = _hit(at, event.node, event.rule, category=event.category, action=event.action, line=event.line)
        _take(turn, hit)


def on_hardware(turn: Turn, event: HardwareEvent) -> None:
    """A device event, judged by the agent's rules or else by sign, code and text."""
    if event.sign == "drain":
        drain.on_notice(turn, event.node, event.text or "its owner announced it")
    else:
        _take(turn, hit_of(event, turn.now))


def hit_of(event: HardwareEvent, now: float) -> Hit:
    """The event as a hit of the rules table."""
    at, text = event.at or now, event.text or f"{event.sign} {event.code or ''}".strip()
    if event.action:
        rule = event.rule or event.sign
        return _hit(at, event.node, rule, category=event.category, action=event.action, line=text)
    if event.sign == "xid" and event.code in XID_CODES:
        category, action, _ = XID_CODES[event.code]
        return _hit(at, event.node, f"xid-{event.code}", category=category, action=action, line=text)
    verdict = classify_text(event.text, _RULES, node=event.node)
    if verdict.rule is not None:
        return Hit.of(verdict, at=at, node=event.node)
    guess = _ALERTS.get(event.sign, "host")
    return _hit(at, event.node, event.sign, category=guess, action="alert", line=text)


def _hit(at: float, node: str, rule: str, *, category: str, action: str, line: str) -> Hit:
    return Hit(at, node, rule, cast(Any, category), cast(Any, action), line=line)


def _take(turn: Turn, hit: Hit) -> None:
    """Remember the signal and act if, with those around it, it is enough."""
    live = turn.live
    if hit.node not in live.nodes or (hit.action == "none" and hit.rule != _ROW_REMAP):
        return
    oldest = turn.now - turn.policy.attribution_before_s
    live.signals = [signal for signal in live.signals if signal.at >= oldest][1 - _SIGNALS_KEPT :]
    live.signals.append(hit)
    found = next((i for i in correlated(turn, live.signals) if hit in i.hits), None)
    if found is None:
        return
    if turn.is_excluded(hit.node):
        _note_more(turn, hit)
        return
    if found.kind != "node":
        _note(turn, found)
        return
    found = _recurring(turn, hit, found)
    if found.category not in MACHINE or found.action not in ("restart", "replace_node"):
        return
    fault = hardware_fault(found)
    if _explains_open_incident(turn, fault):
        reattribute(turn, fault)
    elif found.action == "replace_node":
        _convict(turn, fault)
    elif turn.record.stage is Stage.DIAGNOSING and turn.holds_ranks(hit.node):
        respond(turn, fault)


def _note(turn: Turn, found: HardwareIncident) -> None:
    if turn.record.incident:
        turn.record.incident.add_evidence(found.reason)


def _note_more(turn: Turn, hit: Hit) -> None:
    """A node that is out already goes on telling why."""
    incident = turn.record.incident
    if incident and incident.node == hit.node:
        incident.add_evidence(hit.line or hit.rule)


def _recurring(turn: Turn, hit: Hit, found: HardwareIncident) -> HardwareIncident:
    """Network alerts are tolerated, but not again and again (ByteRobust: two in five minutes)."""
    if found.action != "alert" or hit.category != "network":
        return found
    start = turn.now - turn.policy.alert_window_s
    alerts = [
        s for s in turn.live.signals if s.node == hit.node and s.category == "network" and s.at >= start
    ]
    if len(alerts) < turn.policy.tolerated_alerts:
        return found
    minutes = turn.policy.alert_window_s / 60.0
    reason = f"{len(alerts)} network alerts on {hit.node} within {minutes:g} min: {hit.rule}"
    return replace(found, action="replace_node", reason=reason, hits=tuple(alerts))


def _explains_open_incident(turn: Turn, fault: Fault) -> bool:
    """Whether the ranks that are being stopped ended because of this."""
    incident = turn.record.incident
    if incident is None or turn.record.stage not in (Stage.STOPPING, Stage.ASSEMBLING):
        return False
    if incident.cause not in EXPLAINABLE or fault.node not in turn.record.assignment:
        return False
    recent = turn.now - incident.stages["fault"].at <= turn.policy.attribution_after_s
    return recent and (incident.consequence or incident.node in ("", fault.node))


def _sharpens_open_incident(turn: Turn, fault: Fault) -> bool:
    """Whether the recovery under way is from this very fault, by a milder cure than it needs.

    A rank dies of a broken device seconds before the node's inspection finds the device.
    """
    incident = turn.record.incident
    if incident is None or turn.record.stage not in (Stage.STOPPING, Stage.ASSEMBLING, Stage.LAUNCHING):
        return False
    if incident.cause not in (*EXPLAINABLE, "hardware") or incident.action == "replace_node":
        return False
    recent = turn.now - incident.stages["fault"].at <= turn.policy.attribution_after_s
    same = incident.consequence or incident.node in ("", fault.node)
    return recent and same and fault.node in turn.record.assignment


def _convict(turn: Turn, fault: Fault) -> None:
    """A sure sign: the node goes, whether it has failed yet or not."""
    if held_back(turn, "hardware", fault, "replace the node"):
        return
    if bound := exclusion_bound(turn):
        incident = note_aside(turn, fault, "none", bound)
        tell_refusal(turn, fault.node, f"{fault.reason}; {fault.node} is not replaced: {bound}", incident)
        return
    if _sharpens_open_incident(turn, fault):
        reattribute(turn, fault)
        return
    if turn.holds_ranks(fault.node):
        respond(turn, fault)
        return
    exclude(turn, fault.node, note_aside(turn, fault, "replace_node", "the node is not used any more"))
    replenish(turn)
