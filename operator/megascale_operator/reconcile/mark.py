"""The quarantine annotation of a node: what the operator set, why, for which job and since when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from megascale_operator.reconcile.records import NodeRecord

MODES: Final = ("Observe", "Annotate", "Enforce")
HISTORY_KEPT: Final = 8
_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class Mark:
    """The content of the quarantine annotation.

    Attributes:
        mode: Annotate or Enforce.
        job: namespace/name of the job that requested the quarantine.
        since: Unix seconds.
        set: what the operator set: cordon, taint, or both.
        cause: of the incident, "" if it is not known.
        overridden: Unix seconds at which a release by a person was detected, 0 for none.
    """

    mode: str
    job: str
    incident: str
    reason: str
    since: float
    set: tuple[str, ...] = ()
    overridden: float = 0.0
    cause: str = ""

    def text(self) -> str:
        """Return the annotation's value (JSON)."""
        document: dict[str, Any] = {
            "mode": self.mode,
            "job": self.job,
            "incident": self.incident,
            "cause": self.cause,
            "reason": self.reason[:_REASON],
            "since": round(self.since, 3),
            "set": list(self.set),
        }
        if self.overridden:
            document["overridden"] = round(self.overridden, 3)
        return json.dumps(document, separators=(",", ":"))


def mark_of(node: NodeRecord) -> Mark | None:
    """Return the node's mark, None if there is none; invalid fields get their defaults."""
    found = node.mark()
    if found is None:
        return None
    return Mark(
        mode=_text(found, "mode") if found.get("mode") in MODES else "Annotate",
        job=_text(found, "job"),
        incident=_text(found, "incident"),
        reason=_text(found, "reason"),
        since=_number(found, "since"),
        set=tuple(one for one in ("cordon", "taint") if one in _list(found, "set")),
        overridden=_number(found, "overridden"),
        cause=_text(found, "cause"),
    )


def history_of(node: NodeRecord) -> tuple[float, ...]:
    """Return Unix seconds of the node's last quarantines, including released ones, oldest first."""
    try:
        times = json.loads(node.history) if node.history else []
    except ValueError:
        return ()
    if not isinstance(times, list):
        return ()
    return tuple(float(at) for at in times if isinstance(at, int | float))[-HISTORY_KEPT:]


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _number(found: Mapping[str, Any], key: str) -> float:
    value = found.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _list(found: Mapping[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    return value if isinstance(value, list) else []
