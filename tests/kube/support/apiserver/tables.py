"""Server-side printing: objects as meta.k8s.io/v1 Table, which `kubectl get` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apiserver.errors import Json
from apiserver.resources import Resource

Cell = Callable[[Json], Any]
_CREATED = ".metadata.creationTimestamp"
_STEP = re.compile(
    r"\.(?:([\w-]+(?:\\\.[\w-]+)*)|\{)|\[(?:'([^']+)'|\"([^\"]+)\"|(-?\d+|\*)|\?\(@\.(\w+)\s*==\s*[\"']([^\"']*)[\"']\))\]"
)


def age(timestamp: str | None) -> str:
    """Format an age as kubectl does: 12s, 3m, 5h12m, 4d."""
    if not timestamp:
        return "<unknown>"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds())
    return duration(max(0, seconds))


def duration(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{days}d"


def lookup(obj: Any, path: str) -> Any:
    """Return the value at a printer column's JSONPath, None if there is none."""
    at = obj
    for found in _STEP.finditer(path):
        name, single, double, index, key, value = found.groups()
        field = (name or single or double or "").replace("\\.", ".")
        if field:
            at = at.get(field) if isinstance(at, dict) else None
        elif index is not None:
            at = _indexed(at, index)
        elif key:
            at = (
                next((one for one in at if str(one.get(key)) == value), None)
                if isinstance(at, list)
                else None
            )
    return at


def _indexed(at: Any, index: str) -> Any:
    if not isinstance(at, list):
        return None
    if index == "*":
        return at
    try:
        return at[int(index)]
    except IndexError:
        return None


def _column(name: str, kind: str = "string", priority: int = 0, text: str = "", shown: str = "") -> Json:
    return {"name": name, "type": kind, "format": shown, "description": text or name, "priority": priority}


_NAME = _column("Name", shown="name", text="Name must be unique within a namespace.")
_AGE = _column("Age", text="CreationTimestamp is the time when this object was created.")


def _pod_status(pod: Json) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = pod.get("status", {})
    for one in status.get("containerStatuses", ()):
        waiting = one.get("state", {}).get("waiting", {}).get("reason")
        if waiting:
            return str(waiting)
    return str(
        status.get("reason")
        or {"Succeeded": "Completed", "Failed": "Error"}.get(status.get("phase"), status.get("phase", ""))
    )


def _pod_ready(pod: Json) -> str:
    ready = sum(bool(one.get("ready")) for one in pod.get("status", {}).get("containerStatuses", ()))
    return f"{ready}/{len(pod['spec']['containers'])}"


def _restarts(pod: Json) -> str:
    return str(sum(one.get("restartCount", 0) for one in pod.get("status", {}).get("containerStatuses", ())))


def _involved(event: Json) -> str:
    about = event["involvedObject"]
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _node_status(node: Json) -> str:
    ready = lookup(node, ".status.conditions[?(@.type=='Ready')].status")
    text = {"True": "Ready", "False": "NotReady"}.get(ready, "NotReady")
    return text + (",SchedulingDisabled" if node["spec"].get("unschedulable") else "")


_BUILT_IN: dict[str, list[tuple[Json, Cell]]] = {
    "pods": [
        (_column("Ready"), _pod_ready),
        (_column("Status"), _pod_status),
        (_column("Restarts"), _restarts),
        (_AGE, lambda obj: age(lookup(obj, _CREATED))),
        (_column("IP", priority=1), lambda obj: obj.get("status", {}).get("podIP", "<none>")),
        (_column("Node", priority=1), lambda obj: obj["spec"].get("nodeName", "<none>")),
    ],
    "nodes": [
        (_column("Status"), _node_status),
        (_column("Roles"), lambda _: "<none>"),
        (_AGE, lambda obj: age(lookup(obj, _CREATED))),
        (_column("Version"), lambda obj: lookup(obj, ".status.nodeInfo.kubeletVersion") or ""),
    ],
    "configmaps": [
        (_column("Data"), lambda obj: len(obj.get("data", ())) + len(obj.get("binaryData", ()))),
        (_AGE, lambda obj: age(lookup(obj, _CREATED))),
    ],
    "events": [
        (_column("Last Seen"), lambda obj: age(obj.get("lastTimestamp") or lookup(obj, _CREATED))),
        (_column("Type"), lambda obj: obj.get("type", "")),
        (_column("Reason"), lambda obj: obj.get("reason", "")),
        (_column("Object"), _involved),
        (_column("Message"), lambda obj: obj.get("message", "")),
    ],
    "leases": [
        (_column("Holder"), lambda obj: lookup(obj, ".spec.holderIdentity") or ""),
        (_AGE, lambda obj: age(lookup(obj, _CREATED))),
    ],
}  # fmt: skip
_OTHERS: list[tuple[Json, Cell]] = [(_AGE, lambda obj: age(lookup(obj, _CREATED)))]


class Printer:
    """Formats objects of one resource as rows."""

    def __init__(self, resource: Resource, include: str) -> None:
        self._include = include
        if resource.columns:
            own = [_custom(column) for column in resource.columns]
        else:
            own = _BUILT_IN.get(resource.plural, _OTHERS)
        named = not own or own[0][0]["name"] != "Last Seen"
        first: list[tuple[Json, Cell]] = [(_NAME, lambda obj: obj["metadata"]["name"])] if named else []
        self._columns = first + own

    def table(self, objects: list[Json], metadata: Json, *, headers: bool = True) -> Json:
        """Return a Table; in a watch only the first one has column definitions."""
        table: Json = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        table["columnDefinitions"] = [column for column, _ in self._columns] if headers else None
        return table | {"rows": [self._row(obj) for obj in objects]}

    def _row(self, obj: Json) -> Json:
        row: Json = {"cells": [cell(obj) for _, cell in self._columns]}
        if self._include == "Object":
            row["object"] = obj
        elif self._include != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        return row


def _custom(column: Json) -> tuple[Json, Cell]:
    kind, path = column["type"], column["jsonPath"]

    def cell(obj: Json) -> Any:
        value = lookup(obj, path)
        if value is None:
            return None
        if kind == "date":
            return age(str(value))
        return value if kind in {"integer", "number", "boolean"} else str(value)

    definition = _column(
        column["name"],
        kind,
        column.get("priority", 0),
        column.get("description", ""),
        column.get("format", ""),
    )
    return definition, cell
