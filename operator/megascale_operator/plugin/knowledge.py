"""What is known of a job from its object and its record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from megascale.core.api import Core, Incident, JobRecord, JobState, Policy
from megascale.driver.api import incident_document
from megascale.errors import InputError
from megascale_operator.driver.record import record_in
from megascale_operator.kube.errors import NotFoundError
from megascale_operator.kube.resources import CONFIG_MAPS, Obj
from megascale_operator.plugin.access import Access
from megascale_operator.plugin.pending import pending
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DEFAULTS_FILE, origins

_LINE = 400


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a TrainingJob.

    Attributes:
        record: the driver's, None before there is one.
        pending: what its pods wait for.
        detection: fields of spec.detection that the job or the cluster gives, with value and origin.
    """

    job: Obj
    record: JobRecord | None
    pending: list[str]
    detection: dict[str, Obj]

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def status(self) -> Obj:
        found: Obj = self.job.get("status") or {}
        return found

    @property
    def driver(self) -> Obj:
        return self.status.get("driver") or {}

    @property
    def operator(self) -> Obj:
        return self.status.get("operator") or {}

    def incidents(self) -> list[Incident]:
        """History and the open one, oldest first."""
        if self.record is None:
            return []
        return [*self.record.incidents, *([self.record.incident] if self.record.incident else [])]


async def known(access: Access, name: str) -> Known:
    """Raises: InputError: no such job, or a record of another version."""
    job = await access.job(name)
    waits = await pending(access, job["metadata"]["name"])
    detection = await _detection(access, job)
    found = await _config_map(access, names.record_map(job["metadata"]["name"]))
    if found is None:
        return Known(job, None, waits, detection)
    snapshot = record_in(found).get("core")
    try:
        record = Core.restore(Policy(), snapshot).record if snapshot else None
        return Known(job, record, waits, detection)
    except ValueError as error:
        raise InputError(f"the record of {name} was written by another version: {error}") from error


async def _detection(access: Access, job: Obj) -> dict[str, Obj]:
    found = await _config_map(access, names.job_map(job["metadata"]["name"]))
    defaults = ((found or {}).get("data") or {}).get(DEFAULTS_FILE) or "{}"
    return origins(json.loads(defaults), job["spec"].get("detection") or {})


async def _config_map(access: Access, name: str) -> Obj | None:
    try:
        return await access.api.get(CONFIG_MAPS, name, access.namespace)
    except NotFoundError:
        return None


def document(known: Known) -> dict[str, Any]:
    """What `status --json` prints: the object's status, and the incidents in full."""
    return {
        "job": known.name,
        "namespace": known.job["metadata"].get("namespace", ""),
        **known.status,
        "pending": known.pending,
        "detection": known.detection,
        "incidents": [incident_document(incident) for incident in known.incidents()],
    }


def why(known: Known) -> list[str]:
    """The last decision and what the job waits for, in sentences."""
    lines = [_state_line(known)]
    lines += _waiting(known)
    incidents = known.incidents()
    if not incidents:
        return [*lines, "nothing has gone wrong so far, so nothing had to be decided"]
    last = incidents[-1]
    lines.append(f"{last.id}: {last.reason}")
    lines += [f"  evidence: {line[:_LINE]}" for line in last.evidence]
    lines.append(
        f"  decision: {(last.action or 'none yet').replace('_', ' ')}: {last.decision or 'under way'}"
    )
    if last.consequence:
        lines.append("  this may be an echo of a fault that was not seen itself")
    lines.append(f"  outcome: {last.outcome or 'not over yet'}")
    return lines


def _state_line(known: Known) -> str:
    driver = known.driver
    if not driver:
        return f"{known.name}: {known.status.get('state', 'Pending')}; its driver has not said anything yet"
    reason = f": {driver['reason']}" if driver.get("reason") else ""
    where = f"step {driver.get('step', 0)} of {driver.get('steps', '?')}"
    return f"{known.name}: {driver.get('state')} at {where}, attempt {driver.get('attempt', 0)}{reason}"


def _waiting(known: Known) -> list[str]:
    record, lines = known.record, list(known.pending)
    if record is not None and record.state is JobState.ASSEMBLING:
        slots = known.operator.get("slots") or {}
        lines.append(
            f"it waits for nodes: {record.outstanding} are asked for; of {slots.get('wanted', 0)} slots"
            f" {slots.get('bound', 0)} have a node and {slots.get('ready', 0)} an agent"
        )
    if record is not None and record.excluded:
        out = ", ".join(f"{node} ({exclusion.reason})" for node, exclusion in record.excluded.items())
        lines.append(f"it does not use {out}"[:_LINE])
    for refusal in (known.operator.get("refusals") or ())[-3:]:
        about = f" of {refusal['node']}" if refusal.get("node") else ""
        lines.append(f"the operator refused {refusal.get('request')}{about}: {refusal.get('reason')}")
    lines += [f"alert: {alert.get('reason')}" for alert in (known.driver.get("alerts") or ())[-3:]]
    return lines
