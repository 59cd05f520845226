"""The circuit breaker of quarantines: limits per hour and as a share of all nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from megascale_operator.reconcile.mark import history_of, mark_of
from megascale_operator.reconcile.records import NodeRecord

HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """At most `per_hour` nodes are quarantined in any hour, and `share` (0 to 1) of all nodes at a time.

    One node may always be quarantined, however small the share.
    """

    per_hour: int = 10
    share: float = 0.1


def breaker_open_reason(nodes: Iterable[NodeRecord], limits: Limits, now: float) -> str:
    """Return why no further node may be quarantined, "" if one may; reads only the nodes' annotations."""
    total = out = recent = 0
    for node in nodes:
        total += 1
        mark = mark_of(node)
        out += mark is not None and not mark.overridden
        times = set(history_of(node)) | ({mark.since} if mark else set())
        recent += sum(1 for at in times if now - at < HOUR_S)
    if recent >= limits.per_hour:
        return f"{recent} nodes were quarantined within the hour, the limit is {limits.per_hour}"
    most = max(1, int(limits.share * total))
    if out >= most:
        return f"{out} of {total} nodes are quarantined, the limit is {most} ({limits.share:.0%})"
    return ""
