"""The ConfigMaps of a job (docs/kubernetes.md, "Objects of one job")."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from megascale_operator.kube.resources import TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DEFAULTS_FILE, DetectionDefaults
from megascale_operator.reconcile.job import Job


def digest(content: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return a short digest (16 hex digits) of a JSON value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_digest(body: Obj) -> Obj:
    """Return the object with its own digest in an annotation."""
    annotations = {names.HASH: digest(body), **(body["metadata"].get("annotations") or {})}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}}


def job_map(job: Job, ca_pem: str, detection: DetectionDefaults | None = None) -> Obj:
    """Return the ConfigMap that driver and agents read.

    It holds the manifest, the CA certificate that agents verify the driver with, and the cluster's defaults
    of `spec.detection`.
    """
    manifest = {
        "apiVersion": TRAINING_JOBS.api_version,
        "kind": TRAINING_JOBS.kind,
        "metadata": {"name": job.name},
        "spec": job.obj["spec"],
    }
    data = {"job.yaml": json.dumps(manifest, indent=1, sort_keys=True), "ca.crt": ca_pem}
    if detection is not None:
        data[DEFAULTS_FILE] = detection.text()
    return with_digest({"metadata": job.metadata(names.job_map(job.name), "driver"), "data": data})


def driver_maps(job: Job) -> list[Obj]:
    """Return the ConfigMaps that the operator creates empty and only the driver updates."""
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": job.metadata(name, "driver"), "data": {}}
        for name in (names.driver_map(job.name), names.record_map(job.name))
    ]


def slots_map(job: Job, slots_json: str, driver_crt: str) -> Obj:
    data = {"slots.json": slots_json, **({"driver.crt": driver_crt} if driver_crt else {})}
    return {"metadata": job.metadata(names.slots_map(job.name), "driver"), "data": data}
