"""A job as its TrainingJob object, the driver's job record and its pending pods describe it."""

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
from megascale_operator.plugin.pending import pending_pods
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DEFAULTS_FILE, origins

_MAX_LINE = 400


@dataclass(frozen=True, slots=True)
class JobView:
    """A job's state.

    Attributes:
        job: the TrainingJob object.
        record: the driver's job record, None if there is none yet.
        pending: a sentence for each cause that keeps pods from running.
        detection: fields of `spec.detection` set by the job or the cluster, with value and origin.
        checkpoint_uri: the job's own, or that of the operator's --checkpoint-root; "" if checkpoints are
            stored in the pods.
    """

    job: Obj
    record: JobRecord | None
    pending: list[str]
    detection: dict[str, Obj]
    checkpoint_uri: str

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def status(self) -> Obj:
        status: Obj = self.job.get("status") or {}
        return status

    @property
    def driver(self) -> Obj:
        return self.status.get("driver") or {}

    @property
    def operator(self) -> Obj:
        return self.status.get("operator") or {}

    def incidents(self) -> list[Incident]:
        """Return past incidents and the open one, oldest first."""
        if self.record is None:
            return []
        return [*self.record.incidents, *([self.record.incident] if self.record.incident else [])]


async def load_job_view(access: Access, name: str) -> JobView:
    """Read a job's state from the API server.

    Raises:
        InputError: there is no such job, or its record was written by an incompatible version.
    """
    job = await access.job(name)
    pending = await pending_pods(access, job["metadata"]["name"])
    job_map = await _config_map(access, names.job_map(job["metadata"]["name"])) or {}
    detection = _detection(job_map, job)
    uri = _checkpoint_uri(job_map, job)
    record_map = await _config_map(access, names.record_map(job["metadata"]["name"]))
    if record_map is None:
        return JobView(job, None, pending, detection, uri)
    snapshot = record_in(record_map).get("core")
    try:
        record = Core.restore(Policy(), snapshot).record if snapshot else None
        return JobView(job, record, pending, detection, uri)
    except ValueError as error:
        raise InputError(f"the record of {name} was written by an incompatible version: {error}") from error


def _detection(job_map: Obj, job: Obj) -> dict[str, Obj]:
    defaults = (job_map.get("data") or {}).get(DEFAULTS_FILE) or "{}"
    return origins(json.loads(defaults), job["spec"].get("detection") or {})


def _checkpoint_uri(job_map: Obj, job: Obj) -> str:
    """Return the URI in the manifest that the slots run, or in the job's spec before there is one."""
    manifest = (job_map.get("data") or {}).get("job.yaml")
    spec = json.loads(manifest)["spec"] if manifest else job["spec"]
    return str((spec.get("checkpoint") or {}).get("uri") or "")


async def _config_map(access: Access, name: str) -> Obj | None:
    try:
        return await access.api.get(CONFIG_MAPS, name, access.namespace)
    except NotFoundError:
        return None


def document(view: JobView) -> dict[str, Any]:
    """Return the document that `status --json` prints: the object's status and all incidents."""
    return {
        "job": view.name,
        "namespace": view.job["metadata"].get("namespace", ""),
        **view.status,
        "pending": view.pending,
        "detection": view.detection,
        "incidents": [incident_document(incident) for incident in view.incidents()],
    }


def why(view: JobView) -> list[str]:
    """Return lines that explain what the job waits for and the last decision."""
    lines = [_state_line(view)]
    lines += _waiting(view)
    incidents = view.incidents()
    if not incidents:
        return [*lines, "no incidents so far, so there was no recovery decision"]
    last = incidents[-1]
    lines.append(f"{last.id}: {last.reason}")
    lines += [f"  evidence: {line[:_MAX_LINE]}" for line in last.evidence]
    lines.append(f"  decision: {(last.action or 'none yet').replace('_', ' ')}: {last.decision or 'pending'}")
    if last.consequence:
        lines.append("  this may be the consequence of a fault that was not observed itself")
    lines.append(f"  outcome: {last.outcome or 'still open'}")
    return lines


def _state_line(view: JobView) -> str:
    driver = view.driver
    if not driver:
        return f"{view.name}: {view.status.get('state', 'Pending')}; its driver has not reported yet"
    reason = f": {driver['reason']}" if driver.get("reason") else ""
    where = f"step {driver.get('step', 0)} of {driver.get('steps', '?')}"
    return f"{view.name}: {driver.get('state')} at {where}, attempt {driver.get('attempt', 0)}{reason}"


def _waiting(view: JobView) -> list[str]:
    record, lines = view.record, list(view.pending)
    if record is not None and record.state is JobState.ASSEMBLING:
        slots = view.operator.get("slots") or {}
        lines.append(
            f"waiting for {record.outstanding} requested nodes; of {slots.get('wanted', 0)} slots"
            f" {slots.get('bound', 0)} are bound to a node and {slots.get('ready', 0)} are ready"
        )
    if record is not None and record.excluded:
        out = ", ".join(f"{node} ({exclusion.reason})" for node, exclusion in record.excluded.items())
        lines.append(f"excluded nodes: {out}"[:_MAX_LINE])
    for refusal in (view.operator.get("refusals") or ())[-3:]:
        about = f" of {refusal['node']}" if refusal.get("node") else ""
        when = f" at {refusal['time']}" if refusal.get("time") else ""
        lines.append(f"the operator refused {refusal.get('request')}{about}{when}: {refusal.get('reason')}")
    lines += [f"alert: {alert.get('reason')}" for alert in (view.driver.get("alerts") or ())[-3:]]
    return lines
