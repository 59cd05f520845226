"""Reading the trail of requests: who wrote, and whether two ever wrote at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]
_WRITES = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_LEASE = "/leases"


def writes(trail: Iterable[Json], *clients: str) -> list[Json]:
    """What these clients changed, in order; Leases, Events, tokens and reviews left out."""
    ignored = (_LEASE, "/events", "/token", "selfsubject")
    return [
        line
        for line in trail
        if line["client"] in clients
        and line["method"] in _WRITES
        and 0 < line["code"] < 400
        and not any(part in line["path"] for part in ignored)
    ]


def overlaps(trail: list[Json], clients: tuple[str, ...]) -> list[Json]:
    """Writes that a client sent after another one had taken the Lease over, or without ever holding it."""
    holder, since, wrong = "", 0.0, []
    for line in trail:
        if line["client"] not in clients or line["method"] not in _WRITES or not 0 < line["code"] < 400:
            continue
        if _LEASE in line["path"]:
            if line["client"] != holder:
                holder, since = line["client"], line["time"]
        elif line["client"] != holder and line["began"] > since and writes([line], *clients):
            wrong.append(line)
    return wrong
