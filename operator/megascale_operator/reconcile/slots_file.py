"""`slots.json`: current and departed slot pods, for the driver (docs/kubernetes.md, "Objects of one job")."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.departures import Departure, departure_of, outcome_of
from megascale_operator.reconcile.job import Requests
from megascale_operator.reconcile.records import Nodes, PodRecord

GONE_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class SlotsFile:
    """The content of `slots.json`.

    Attributes:
        slots: entries of the current pods.
        gone: entries of the last GONE_KEPT departed pods, oldest first.
        incarnations: the highest incarnation that each slot ever had.
    """

    slots: tuple[Obj, ...] = ()
    gone: tuple[Obj, ...] = ()
    incarnations: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> SlotsFile:
        """Parse `slots.json`; malformed text gives an empty document, which is then rebuilt from the pods."""
        try:
            found: Any = json.loads(text) if text else {}
            return cls(
                tuple(found.get("slots", ())),
                tuple(found.get("gone", ())),
                {int(slot): int(last) for slot, last in found.get("incarnations", {}).items()},
            )
        except (ValueError, AttributeError, TypeError):
            return cls()

    def with_new(self, incarnations: Mapping[int, int]) -> SlotsFile:
        """Return a copy that includes the incarnations of pods that are about to be created."""
        return replace(self, incarnations={**self.incarnations, **incarnations})

    def text(self) -> str:
        document = {
            "slots": list(self.slots),
            "gone": list(self.gone),
            "incarnations": {str(slot): last for slot, last in sorted(self.incarnations.items())},
        }
        return json.dumps(document, separators=(",", ":"))


def next_file(
    before: SlotsFile,
    pods: Iterable[PodRecord],
    ended: Iterable[PodRecord],
    known: Mapping[int, int],
    nodes: Nodes,
    requests: Requests,
    now: float,
    topology_keys: Sequence[str] = (),
) -> SlotsFile:
    """Return the document for the current pods; pods that have disappeared since `before` go to `gone`.

    Args:
        before: the current `slots.json`.
        pods: current slot pods.
        ended: last records of deleted slot pods.
        known: highest incarnation of each slot that this process has seen.
        now: Unix seconds.
        topology_keys: node labels whose values become the `domains` of each slot, in this order.
    """
    pods = sorted(pods, key=lambda pod: (pod.slot, pod.incarnation))
    present = {pod.uid for pod in pods if not pod.finished}
    reported = {entry["uid"] for entry in before.gone}
    fresh: dict[str, Obj] = {}
    for entry in before.slots:
        if entry["uid"] not in present:
            fresh[entry["uid"]] = _gone_by_entry(entry, now)
    for pod in (*ended, *(pod for pod in pods if pod.finished)):
        if pod.uid not in present:
            earlier = fresh.get(pod.uid, {}).get("reason", "")
            fresh[pod.uid] = _gone(pod, outcome_of(pod, nodes, requests, earlier), now)
    gone = [*before.gone, *(entry for uid, entry in fresh.items() if uid not in reported)]
    incarnations = dict(before.incarnations)
    numbers = [*known.items(), *((pod.slot, pod.incarnation) for pod in (*pods, *ended))]
    for slot, incarnation in numbers:
        incarnations[slot] = max(incarnation, incarnations.get(slot, 0))
    entries = tuple(
        _entry(pod, departure_of(pod, nodes, requests), nodes, topology_keys)
        for pod in pods
        if not pod.finished
    )
    return SlotsFile(entries, tuple(gone[-GONE_KEPT:]), incarnations)


def _entry(pod: PodRecord, leaving: Departure | None, nodes: Nodes, keys: Sequence[str]) -> Obj:
    node = nodes.get(pod.node)
    labels = dict(node.labels) if node else {}
    return {
        "slot": pod.slot,
        "incarnation": pod.incarnation,
        "pod": pod.name,
        "uid": pod.uid,
        "node": pod.node,
        "nodeReady": bool(node and node.ready),
        "ip": pod.ip,
        "phase": pod.phase,
        "ready": pod.ready,
        "leaving": leaving.reason if leaving else "",
        "exit": pod.exit,
        "restarts": pod.restarts,
        "domains": [labels.get(key, "") for key in keys],
    }


def _gone(pod: PodRecord, outcome: Departure, now: float) -> Obj:
    return {
        "slot": pod.slot, "incarnation": pod.incarnation, "node": pod.node, "uid": pod.uid,
        "reason": outcome.reason, "planned": outcome.planned, "at": round(now, 3),
    }  # fmt: skip


def _gone_by_entry(entry: Obj, now: float) -> Obj:
    """Return the entry of a pod that disappeared while no operator was watching, from its last entry."""
    reason = entry.get("leaving") or "deleted"
    kept = {key: entry[key] for key in ("slot", "incarnation", "node", "uid")}
    return {**kept, "reason": reason, "planned": Departure.was_planned(reason), "at": round(now, 3)}
