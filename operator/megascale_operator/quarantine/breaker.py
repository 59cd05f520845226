"""The breaker of the cluster: how many nodes may be out because of us, by number per hour and by share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from megascale_operator.reconcile.mark import history_of, mark_of
from megascale_operator.reconcile.records import NodeRecord

HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """At most `per_hour` quarantines an hour, and at most `share` of all nodes (but always one) at a time."""

    per_hour: int = 10
    share: float = 0.1


def closed_because(nodes: Iterable[NodeRecord], limits: Limits, now: float) -> str:
    """Why no further node may be quarantined, "" if one may. Reads only the nodes' annotations."""
    total = out = recent = 0
    for node in nodes:
        total += 1
        mark = mark_of(node)
        out += mark is not None and not mark.overridden
        times = set(history_of(node)) | ({mark.since} if mark else set())
        recent += sum(1 for at in times if now - at < HOUR_S)
    if recent >= limits.per_hour:
        return f"{recent} nodes were quarantined within the hour, the bound is {limits.per_hour}"
    most = max(1, int(limits.share * total))
    if out >= most:
        return f"{out} of {total} nodes are quarantined, the bound is {most} ({limits.share:.0%})"
    return ""
