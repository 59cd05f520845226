"""Writes of a few fields of a job's status, for jobs without a validated manifest."""

from __future__ import annotations

from typing import Any

from megascale_operator.kube.resources import TRAINING_JOBS, Obj
from megascale_operator.reconcile.plan import Apply


def status_write(obj: Obj, **fields: Any) -> Apply:  # noqa: ANN401 - JSON values
    """Return the write of these fields of the operator's part of a TrainingJob's status.

    Server-side apply removes fields that are left out, so the operator's other fields are repeated.
    """
    meta = obj["metadata"]
    kept = {key: value for key, value in (obj.get("status") or {}).items() if key != "driver"}
    body = {
        "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
        "status": {**kept, **fields},
    }
    return Apply(TRAINING_JOBS, body, "status")
