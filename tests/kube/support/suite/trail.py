"""Evaluation of the request log: writes per client, and overlapping writers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]
_WRITES = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_LEASE = "/leases"


def writes(trail: Iterable[Json], *clients: str) -> list[Json]:
    """Return the writes of these clients in order, without Leases, Events, tokens and reviews."""
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
    """Return the writes that a client sent after another had taken the Lease, or without ever holding it."""
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
