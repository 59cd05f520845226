"""Human-readable output of the plug-in."""

from __future__ import annotations

from typing import Any, Final

from megascale.cli.api import STAGE_LABELS
from megascale_operator.plugin.job_view import JobView

_MAX_INCIDENTS: Final = 5


def status_lines(view: JobView) -> list[str]:
    """Return the lines of `status`: progress, slots and the last incidents."""
    driver, operator = view.driver, view.operator
    slots = operator.get("slots") or {}
    rows = [
        ("state", f"{view.status.get('state', 'Pending')} ({driver.get('state', 'no driver yet')})"),
        ("step", f"{driver.get('step', 0)} / {driver.get('steps', '?')}"),
        ("loss", driver.get("loss")),
        ("MFU", _percent(driver.get("mfu"))),
        ("goodput", _percent(driver.get("goodput"))),
        ("slots", f"{slots.get('ready', 0)} ready of {slots.get('wanted', 0)}" if slots else None),
        *(("pods", sentence) for sentence in view.pending),
        ("restarts", driver.get("restarts")),
        ("newest checkpoint", _step(driver.get("checkpointStep"))),
        ("driver", f"{driver.get('pod', '?')}, term {driver.get('term')}" if driver else None),
        ("avoided nodes", ", ".join((driver.get("requests") or {}).get("avoidNodes") or ()) or None),
        ("detection", _detection(view) or None),
        ("reason", driver.get("reason") or None),
    ]
    lines = [f"{view.name}"]
    lines += [f"  {label:<18} {value}" for label, value in rows if value is not None]
    documents = [_short(incident) for incident in view.incidents()[-_MAX_INCIDENTS:]]
    if documents:
        lines.append("  incidents")
        lines += [f"    {line}" for line in documents]
    return lines


def _short(incident: Any) -> str:  # noqa: ANN401 - an Incident
    action = (incident.action or "open").replace("_", " ")
    return f"{incident.id:<6} {incident.reason} -> {action}: {incident.outcome or 'still open'}"


def incident_lines(documents: list[dict[str, Any]]) -> list[str]:
    """Return the lines of `incidents`: decision, evidence and milestones of each incident."""
    if not documents:
        return ["no incidents"]
    lines = []
    for one in documents:
        action = (one["action"] or "none yet").replace("_", " ")
        lines.append(f"{one['id']}: {one['reason']}")
        lines.append(f"  decision: {action}: {one['decision']}")
        lines += [f"  evidence: {text}" for text in one["evidence"]]
        lines.append(f"  {_milestones(one['milestones'])}; {one['outcome']}")
    return lines


def _milestones(milestones: dict[str, dict[str, Any]]) -> str:
    fault = float(milestones["fault"]["at"])
    reported = [
        f"{label} {float(milestones[name]['at']) - fault:.2f} s"
        for name, label in STAGE_LABELS
        if name in milestones
    ]
    return f"after the fault: {', '.join(reported)}"


def check_lines(status: dict[str, Any]) -> list[str]:
    """Return the lines of `check`: the NodeCheck's results by group."""
    counts = ", ".join(
        f"{status[key]} {key}" for key in ("passed", "convicted", "unknown", "skipped") if status.get(key)
    )
    lines = [f"{status['check']}: {counts or 'no nodes'}"]
    for group in status.get("groups") or ():
        reason = f": {group['reason']}" if group.get("reason") else ""
        lines.append(f"  {group.get('result')} {', '.join(group.get('nodes') or ())}{reason}")
    return lines


def _detection(view: JobView) -> str:
    """Return text such as `hang.steps 5 (job), shadow straggler (cluster)`."""
    fields = {path: (_value(entry["value"]), entry["from"]) for path, entry in view.detection.items()}
    return ", ".join(f"{path} {value} ({origin})" for path, (value, origin) in fields.items())


def _value(value: Any) -> str:  # noqa: ANN401 - a number, or a list of names
    return (" ".join(value) or "none") if isinstance(value, list) else str(value)


def _percent(share: str | None) -> str | None:
    return f"{float(share):.1%}" if share else None


def _step(step: int | None) -> str | None:
    return None if step is None else f"step {step}"
