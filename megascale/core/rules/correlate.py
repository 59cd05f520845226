"""Many events, one incident: a fault seen by driver, bus, NIC and kernel, or a switch seen by many nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from megascale.core.rules.model import Action, Category, Scope, Verdict

_FABRIC_NODES: Final = 4  # so many nodes at once have a fault in common
_CODE_NODES: Final = 3
_REPEATS: Final = 2
_XID = re.compile(r"^xid-(\d+|nvlink5)$")

# Alone these ask for a restart; a second one within the window convicts the node.
_RECURRING: Final = frozenset(
    {"46", "61", "62", "74", "94", "109", "110", "119", "120", "136", "143", "158", "nvlink5"}
)
_ORDER: Final[dict[Action, int]] = {"none": 0, "alert": 1, "restart": 2, "fail_job": 3, "replace_node": 4}


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched at a time (s) on a node."""

    at: float
    node: str
    rule: str
    category: Category
    action: Action
    scope: Scope = "cause"
    line: str = ""

    @classmethod
    def of(cls, verdict: Verdict, *, at: float, node: str) -> Hit:
        """From a verdict of the engine; `node` is where the line was read."""
        return cls(
            at,
            verdict.node or node,
            verdict.rule or "",
            verdict.category,
            verdict.action,
            verdict.scope,
            verdict.line,
        )


@dataclass(frozen=True, slots=True)
class HardwareIncident:
    """Events that are one fault.

    Attributes:
        kind: "node" (one machine), "fabric" (a switch or rail: many nodes at once) or "code" (the same
            application fault on many nodes at once).
        nodes: sorted; hits: in time order.
        reason: in words, with the numbers.
    """

    kind: str
    nodes: tuple[str, ...]
    start: float
    end: float
    category: Category
    action: Action
    reason: str
    hits: tuple[Hit, ...]


def correlate(
    hits: Sequence[Hit], window_s: float, *, switch_of: Mapping[str, str] | None = None
) -> list[HardwareIncident]:
    """Groups hits into incidents, in the order in which they began.

    Args:
        window_s: hits with smaller gaps belong together.
        switch_of: node -> switch; with it only nodes of one switch form a fabric incident.
    """
    if window_s <= 0:
        raise ValueError(f"window_s must be positive, got {window_s}")
    ordered = sorted((hit for hit in hits if _counts(hit)), key=lambda hit: (hit.at, hit.node, hit.rule))
    incidents: list[HardwareIncident] = []
    rest = ordered
    for kind, minimum in (("fabric", _FABRIC_NODES), ("code", _CODE_NODES)):
        shared, rest = _shared(rest, window_s, kind, minimum, switch_of or {})
        incidents.extend(shared)
    for node in sorted({hit.node for hit in rest}):
        for group in _clusters([hit for hit in rest if hit.node == node], window_s):
            incident = _node_incident(node, group)
            if incident is not None:
                incidents.append(incident)
    return sorted(incidents, key=lambda incident: (incident.start, incident.nodes))


def _counts(hit: Hit) -> bool:
    """Row remaps count beside 48, so they are kept though alone they are benign."""
    return hit.scope == "cause" and (hit.category != "benign" or hit.rule == "xid-63")


def _clusters(hits: Sequence[Hit], window_s: float) -> list[list[Hit]]:
    groups: list[list[Hit]] = []
    for hit in hits:
        if groups and hit.at - groups[-1][-1].at <= window_s:
            groups[-1].append(hit)
        else:
            groups.append([hit])
    return groups


def _shared(
    hits: Sequence[Hit], window_s: float, kind: str, minimum: int, switch_of: Mapping[str, str]
) -> tuple[list[HardwareIncident], list[Hit]]:
    """Incidents of many nodes, and the hits that belong to none of them."""
    category: Category = "network" if kind == "fabric" else "user_code"
    by_switch: dict[str, list[Hit]] = {}
    for hit in hits:
        if hit.category == category:
            by_switch.setdefault(switch_of.get(hit.node, "") if kind == "fabric" else "", []).append(hit)
    incidents: list[HardwareIncident] = []
    taken: set[int] = set()
    for switch, group in sorted(by_switch.items()):
        for cluster in _clusters(group, window_s):
            nodes = tuple(sorted({hit.node for hit in cluster}))
            if len(nodes) >= minimum:
                incidents.append(_many_nodes(kind, switch, nodes, cluster, category))
                taken.update(id(hit) for hit in cluster)
    return incidents, [hit for hit in hits if id(hit) not in taken]


def _many_nodes(
    kind: str, switch: str, nodes: tuple[str, ...], cluster: Sequence[Hit], category: Category
) -> HardwareIncident:
    span = cluster[-1].at - cluster[0].at
    if kind == "fabric":
        where = f"switch {switch}" if switch else "a shared switch or rail"
        reason = f"{len(nodes)} nodes lost their network within {span:.0f} s: {where}, not the nodes"
        action: Action = "alert"
    else:
        reason = f"the same application fault on {len(nodes)} nodes within {span:.0f} s: code or data"
        action = max((hit.action for hit in cluster), key=_ORDER.__getitem__)
    return HardwareIncident(
        kind, nodes, cluster[0].at, cluster[-1].at, category, action, reason, tuple(cluster)
    )


def _node_incident(node: str, hits: Sequence[Hit]) -> HardwareIncident | None:
    codes = [match[1] for hit in hits if (match := _XID.match(hit.rule))]
    main = max(hits, key=lambda hit: (_ORDER[hit.action], hit.category == "gpu", -hit.at))
    action, reason = main.action, f"{main.rule} on {node}"
    repeated = next((code for code in codes if code in _RECURRING and codes.count(code) >= _REPEATS), None)
    if "48" in codes and ("63" in codes or "64" in codes):
        action, reason = "replace_node", f"XID 48 with row remap on {node}: uncorrectable memory error"
    elif repeated is not None and _ORDER[action] < _ORDER["replace_node"]:
        action, reason = "replace_node", f"XID {repeated} {codes.count(repeated)} times on {node}"
    elif action == "none":
        return None
    elif len(hits) > 1:
        others = sorted({hit.rule for hit in hits if hit.rule != main.rule})
        reason += f" with {', '.join(others)}" if others else f", {len(hits)} times"
    return HardwareIncident(
        "node", (node,), hits[0].at, hits[-1].at, main.category, action, reason, tuple(hits)
    )
