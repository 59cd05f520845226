"""The annotation `megascale.io/command` of a TrainingJob: a user's command to the driver, as JSON."""

from __future__ import annotations

import json
from typing import Any, Final

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile import names

MAX_LENGTH: Final = 4096
"""Characters; the driver ignores longer annotations."""
_MAX_ID: Final = 63


def parse_command(text: str) -> dict[str, Any]:
    """Return the command with its `id` cut to 63 characters; {} for text that the driver ignores."""
    try:
        order = json.loads(text) if len(text) <= MAX_LENGTH else {}
    except ValueError:
        return {}
    if not isinstance(order, dict) or not order.get("id"):
        return {}
    return {**order, "id": str(order["id"])[:_MAX_ID]}


def unanswered_command(job: Obj) -> dict[str, Any]:
    """Return the command in the annotation of a TrainingJob, {} if there is none or it was answered."""
    order = parse_command(str((job["metadata"].get("annotations") or {}).get(names.COMMAND) or ""))
    driver = (job.get("status") or {}).get("driver") or {}
    return {} if order.get("id") == (driver.get("lastCommand") or {}).get("id") else order
