"""events.k8s.io/v1 and v1 are two views of one stored Event (kept in the v1 form)."""

from __future__ import annotations

from apiserver.errors import Json

_PAIRS = (
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
)


def to_core(event: Json) -> Json:
    """Return the v1 form of an events.k8s.io/v1 Event."""
    return _renamed(event, dict(_PAIRS), "v1")


def from_core(event: Json) -> Json:
    """Return the events.k8s.io/v1 form of a v1 Event."""
    return _renamed(event, {old: new for new, old in _PAIRS}, "events.k8s.io/v1")


def _renamed(event: Json, names: dict[str, str], api_version: str) -> Json:
    renamed = {names.get(name, name): value for name, value in event.items()}
    if "apiVersion" in renamed:
        renamed["apiVersion"] = api_version
    return renamed
