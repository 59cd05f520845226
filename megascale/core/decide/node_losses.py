"""Nodes lost together have a cause in common: a switch or a rack, not the nodes (design 10.5).

A lost node is judged only when the next attempt is launched: by then its neighbours' losses are known.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.decide.blame import add_blame, exclude
from megascale.core.state.context import Turn
from megascale.core.state.record import Incident, Loss

_ANYWHERE: Final = "the cluster"
_ANYWHERE_FACTOR: Final = 2


def domain_of(turn: Turn, name: str) -> str:
    """The narrowest known network domain of the node, "" if it has none of the labels."""
    node = turn.live.nodes.get(name)
    labels = node.labels if node is not None else {}
    return next((f"{key}={labels[key]}" for key in turn.policy.topology_keys if labels.get(key)), "")


def note_loss(turn: Turn, name: str, reason: str) -> None:
    """Remember that a node with ranks was lost; forgive it when many are lost at once."""
    record = turn.record
    record.lost[name] = Loss(domain_of(turn, name), turn.now, reason)
    together = [n for n, loss in record.lost.items() if loss.at > turn.now - turn.policy.correlate_s]
    by_domain: dict[str, list[str]] = defaultdict(list)
    for other in together:
        by_domain[record.lost[other].domain].append(other)
    for domain, names in by_domain.items():
        if domain and len(names) >= turn.policy.shared_cause_nodes:
            _forgive(turn, domain, names)
    if len(together) >= _ANYWHERE_FACTOR * turn.policy.shared_cause_nodes:
        _forgive(turn, _ANYWHERE, together)


def _forgive(turn: Turn, domain: str, names: list[str]) -> None:
    record = turn.record
    record.shared[domain] = turn.now
    if record.incident and record.incident.cause == "node_lost":
        record.incident.node = ""
        record.incident.reason = (
            f"{len(names)} nodes of {domain} were lost within {turn.policy.correlate_s:g} s: "
            "a cause they share, none of them is blamed"
        )


def is_shared(turn: Turn, name: str) -> bool:
    """Whether the lost node was lost together with many others."""
    shared, loss = turn.record.shared, turn.record.lost[name]
    seen_at = max(shared.get(loss.domain, 0.0), shared.get(_ANYWHERE, 0.0))
    return abs(loss.at - seen_at) <= turn.policy.correlate_s


def release_shared(turn: Turn) -> None:
    """Nodes that share a cause may be used again as soon as they are back."""
    turn.record.lost = {name: loss for name, loss in turn.record.lost.items() if not is_shared(turn, name)}


def _give_back(turn: Turn, name: str) -> None:
    """The fleet may still hold a node that only went silent."""
    node = turn.live.nodes.get(name)
    if node is not None and not node.released:
        node.released = True
        turn.emit(fx.Release, turn.record.lost[name].reason, node=name)


def settle(turn: Turn, incident: Incident | None) -> None:
    """Before a launch: blame and exclude the nodes that were lost for a reason of their own."""
    release_shared(turn)
    for name in sorted(turn.record.lost):
        if incident is not None:
            add_blame(turn, name, "node_lost")
            if exclude(turn, name, incident, reason=turn.record.lost[name].reason):
                _give_back(turn, name)
    turn.record.lost = {}
    turn.record.shared = {
        d: at for d, at in turn.record.shared.items() if at > turn.now - turn.policy.correlate_s
    }
