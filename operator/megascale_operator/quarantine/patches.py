"""JSON patches of Nodes. Each tests the resourceVersion, so it fails if the node has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from megascale.core.api import Cause
from megascale_operator.reconcile import names
from megascale_operator.reconcile.mark import HISTORY_KEPT, Mark, history_of, mark_of
from megascale_operator.reconcile.records import NodeRecord

Operations = list[dict[str, Any]]
EFFECT: Final = "NoSchedule"
_CLASSES: Final[Mapping[str, str]] = {
    Cause.HARDWARE: "hardware",
    Cause.STRAGGLER: "straggler",
    Cause.HANG: "hang",
    Cause.NUMERICS: "numerics",
    Cause.NODE_LOST: "lost",
}


def quarantine_class(cause: str) -> str:
    """Return the taint value for the cause of an incident, "other" for causes that are not a node's."""
    return _CLASSES.get(cause, "other")


def quarantine(node: NodeRecord, mark: Mark) -> tuple[Operations, Mark]:
    """Return the operations that quarantine the node, and the mark with `set` filled in."""
    done: list[str] = []
    operations: Operations = []
    if mark.mode == "Enforce":
        if not node.unschedulable:
            done.append("cordon")
            operations.append({"op": "add", "path": "/spec/unschedulable", "value": True})
        if not node.tainted:
            done.append("taint")
            taint = {"key": names.TAINT, "value": quarantine_class(mark.cause), "effect": EFFECT}
            if node.taints:
                operations.append({"op": "add", "path": "/spec/taints/-", "value": taint})
            else:
                operations.append({"op": "add", "path": "/spec/taints", "value": [taint]})
    earlier = mark_of(node)
    kept = earlier.set if earlier else ()
    complete = Mark(
        mark.mode, mark.job, mark.incident, mark.reason, mark.since,
        tuple(one for one in ("cordon", "taint") if one in (*kept, *done)), cause=mark.cause,
    )  # fmt: skip
    history = json.dumps([*history_of(node), round(mark.since, 3)][-HISTORY_KEPT:])
    operations += annotate(node, {names.QUARANTINE: complete.text(), names.QUARANTINE_HISTORY: history})
    return [_test(node), *operations], complete


def release(node: NodeRecord, *, keep_mark: Mark | None = None) -> Operations:
    """Return the operations that remove what the operator set.

    Args:
        keep_mark: write this mark instead of removing the annotation, and keep the cordon.
    """
    mark = mark_of(node)
    operations: Operations = []
    if mark and "cordon" in mark.set and node.unschedulable and keep_mark is None:
        operations.append({"op": "remove", "path": "/spec/unschedulable"})
    if node.tainted:
        index = node.taints.index(names.TAINT)
        operations.append({"op": "test", "path": f"/spec/taints/{index}/key", "value": names.TAINT})
        operations.append({"op": "remove", "path": f"/spec/taints/{index}"})
    if keep_mark is not None:
        operations += annotate(node, {names.QUARANTINE: keep_mark.text()})
    elif node.quarantine:
        operations.append({"op": "remove", "path": _pointer(names.QUARANTINE)})
    return [_test(node), *operations]


def annotate(node: NodeRecord, annotations: dict[str, str]) -> Operations:
    """Return the operations that add or replace annotations."""
    if not node.annotated:
        return [{"op": "add", "path": "/metadata/annotations", "value": annotations}]
    return [{"op": "add", "path": _pointer(key), "value": value} for key, value in annotations.items()]


def _test(node: NodeRecord) -> dict[str, Any]:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": node.version}


def _pointer(key: str) -> str:
    return f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}"
