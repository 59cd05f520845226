"""Groups matches into incidents: one fault reported by driver, bus, NIC and kernel, or a switch fault
reported by many nodes."""

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
class RuleMatch:
    """A rule that matched at a time (s) on a node."""

    at: float
    node: str
    rule: str
    category: Category
    action: Action
    scope: Scope = "cause"
    line: str = ""

    @classmethod
    def of(cls, verdict: Verdict, *, at: float, node: str) -> RuleMatch:
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
    """Matches that are attributed to one fault.

    Attributes:
        kind: "node" (one machine), "fabric" (a switch or rail: many nodes at once) or "code" (the same
            application fault on many nodes at once).
        nodes: sorted; matches: in time order.
        reason: what was found, with its numbers.
    """

    kind: str
    nodes: tuple[str, ...]
    start: float
    end: float
    category: Category
    action: Action
    reason: str
    matches: tuple[RuleMatch, ...]


def correlate(
    matches: Sequence[RuleMatch], window_s: float, *, switch_of: Mapping[str, str] | None = None
) -> list[HardwareIncident]:
    """Groups matches into incidents, in the order in which they began.

    Args:
        window_s: matches that are closer than this belong to one incident.
        switch_of: node -> switch; with it only nodes of one switch form a fabric incident.
    """
    if window_s <= 0:
        raise ValueError(f"window_s must be positive, got {window_s}")
    ordered = sorted(
        (match for match in matches if _counts(match)), key=lambda match: (match.at, match.node, match.rule)
    )
    incidents: list[HardwareIncident] = []
    rest = ordered
    for kind, minimum in (("fabric", _FABRIC_NODES), ("code", _CODE_NODES)):
        shared, rest = _shared(rest, window_s, kind, minimum, switch_of or {})
        incidents.extend(shared)
    for node in sorted({match.node for match in rest}):
        for group in _clusters([match for match in rest if match.node == node], window_s):
            incident = _node_incident(node, group)
            if incident is not None:
                incidents.append(incident)
    return sorted(incidents, key=lambda incident: (incident.start, incident.nodes))


def _counts(match: RuleMatch) -> bool:
    """Whether a match is grouped. XID 63 (row remap) is benign alone, but convicts a node beside XID 48."""
    return match.scope == "cause" and (match.category != "benign" or match.rule == "xid-63")


def _clusters(matches: Sequence[RuleMatch], window_s: float) -> list[list[RuleMatch]]:
    groups: list[list[RuleMatch]] = []
    for match in matches:
        if groups and match.at - groups[-1][-1].at <= window_s:
            groups[-1].append(match)
        else:
            groups.append([match])
    return groups


def _shared(
    matches: Sequence[RuleMatch], window_s: float, kind: str, minimum: int, switch_of: Mapping[str, str]
) -> tuple[list[HardwareIncident], list[RuleMatch]]:
    """Incidents of many nodes, and the matches that belong to none of them."""
    category: Category = "network" if kind == "fabric" else "user_code"
    by_switch: dict[str, list[RuleMatch]] = {}
    for match in matches:
        if match.category == category:
            by_switch.setdefault(switch_of.get(match.node, "") if kind == "fabric" else "", []).append(match)
    incidents: list[HardwareIncident] = []
    taken: set[int] = set()
    for switch, group in sorted(by_switch.items()):
        for cluster in _clusters(group, window_s):
            nodes = tuple(sorted({match.node for match in cluster}))
            if len(nodes) >= minimum:
                incidents.append(_many_nodes(kind, switch, nodes, cluster, category))
                taken.update(id(match) for match in cluster)
    return incidents, [match for match in matches if id(match) not in taken]


def _many_nodes(
    kind: str, switch: str, nodes: tuple[str, ...], cluster: Sequence[RuleMatch], category: Category
) -> HardwareIncident:
    span = cluster[-1].at - cluster[0].at
    if kind == "fabric":
        where = f"switch {switch}" if switch else "a shared switch or rail"
        reason = f"{len(nodes)} nodes lost their network within {span:.0f} s: {where}, not the nodes"
        action: Action = "alert"
    else:
        reason = f"the same application fault on {len(nodes)} nodes within {span:.0f} s: code or data"
        action = max((match.action for match in cluster), key=_ORDER.__getitem__)
    return HardwareIncident(
        kind, nodes, cluster[0].at, cluster[-1].at, category, action, reason, tuple(cluster)
    )


def _node_incident(node: str, matches: Sequence[RuleMatch]) -> HardwareIncident | None:
    codes = [found[1] for match in matches if (found := _XID.match(match.rule))]
    main = max(matches, key=lambda match: (_ORDER[match.action], match.category == "gpu", -match.at))
    action, reason = main.action, f"{main.rule} on {node}"
    repeated = next((code for code in codes if code in _RECURRING and codes.count(code) >= _REPEATS), None)
    if "48" in codes and ("63" in codes or "64" in codes):
        action, reason = "replace_node", f"XID 48 with row remap on {node}: uncorrectable memory error"
    elif repeated is not None and _ORDER[action] < _ORDER["replace_node"]:
        action, reason = "replace_node", f"XID {repeated} {codes.count(repeated)} times on {node}"
    elif action == "none":
        return None
    elif len(matches) > 1:
        others = sorted({match.rule for match in matches if match.rule != main.rule})
        reason += f" with {', '.join(others)}" if others else f", {len(matches)} times"
    return HardwareIncident(
        "node", (node,), matches[0].at, matches[-1].at, main.category, action, reason, tuple(matches)
    )
