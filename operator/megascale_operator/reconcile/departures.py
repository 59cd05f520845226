"""Why a slot's pod goes or went, and whether that was planned: nobody's fault, no budget charged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from megascale_operator.reconcile.job import Requests
from megascale_operator.reconcile.records import Nodes, PodRecord

RESTART_EXIT: Final = 75
"""The agent asks for a restart of its container."""
_CRASHES: Final = 3
_FAULTS: Final = ("failed", "check", "node")
_NODE_FAULTS: Final = ("DeletionByPodGC", "DeletionByTaintManager")
_PLANNED_REASONS: Final = ("Evicted", "Preempting", "Terminated", "NodeShutdown", "Shutdown")


@dataclass(frozen=True, slots=True)
class Departure:
    """`reason` begins with its kind: evicted, drained, deleted, released, restart, failed, check, node."""

    reason: str

    @property
    def planned(self) -> bool:
        return self.was_planned(self.reason)

    @staticmethod
    def was_planned(reason: str) -> bool:
        """Whether nothing was wrong with pod or node."""
        return not reason.startswith(_FAULTS)


def departure_of(pod: PodRecord, nodes: Nodes, requests: Requests) -> Departure | None:
    """Why the pod is on its way out, None if it stays; the surest reason comes first."""
    reason = (
        _requested(pod, requests)
        or _disrupted(pod)
        or _lost(pod, nodes)
        or _faulty(pod)
        or _drained(pod, nodes)
        or ("deleted" if pod.deleting_since else "")
    )
    return Departure(reason) if reason else None


def outcome_of(pod: PodRecord, nodes: Nodes, requests: Requests, earlier: str) -> Departure:
    """Why the pod is gone; `earlier` is what was told while it was leaving."""
    if earlier and earlier != "deleted":
        return Departure(earlier)
    leaving = departure_of(pod, nodes, requests)
    if pod.phase == "Succeeded":
        # An agent ends well whoever tells it to: only one that nobody deletes was told by its driver.
        return leaving or Departure("released: the agent ended")
    if leaving and (leaving.reason != "deleted" or pod.phase != "Failed"):
        return leaving
    if pod.phase == "Failed":
        if pod.reason in _PLANNED_REASONS:
            return Departure(f"evicted: {pod.reason}")
        return Departure(
            f"failed: exit code {pod.exit}" if pod.exit is not None else f"failed: {pod.reason or 'unknown'}"
        )
    return Departure("deleted")


def crashes(pod: PodRecord) -> bool:
    """Whether its agent keeps ending by itself; the kubelet restarts it, which helps only so often."""
    return (
        pod.exit not in (None, 0, RESTART_EXIT)
        and (pod.looping or pod.restarts >= _CRASHES)
        and not pod.ready
    )


def conviction(pod: PodRecord) -> str:
    """What the check before joining found wrong with the node, "" if nothing."""
    if not pod.failed_check:
        return ""
    try:
        verdict = json.loads(pod.check)
    except ValueError:
        return ""
    if not isinstance(verdict, dict) or verdict.get("verdict") != "convicted":
        return ""
    return str(verdict.get("reason") or "convicted")[:300]


def _requested(pod: PodRecord, requests: Requests) -> str:
    for name, order in requests.restart:
        if name == pod.name:
            return f"restart: {order}"
    return "released: by the driver" if pod.name in requests.release else ""


def _disrupted(pod: PodRecord) -> str:
    if not pod.disruption:
        return ""
    return f"{'node' if pod.disruption in _NODE_FAULTS else 'evicted'}: {pod.disruption}"


def _lost(pod: PodRecord, nodes: Nodes) -> str:
    if pod.node in nodes.gone:
        return f"node: {pod.node} does not exist any more"
    node = nodes.get(pod.node)
    return f"node: {pod.node} is out of service" if node and node.out_of_service else ""


def _faulty(pod: PodRecord) -> str:
    convicted = conviction(pod)
    if convicted:
        return f"check: {convicted}"
    return f"failed: exit code {pod.exit}, {pod.restarts} restarts" if crashes(pod) else ""


def _drained(pod: PodRecord, nodes: Nodes) -> str:
    node = nodes.get(pod.node)
    return f"drained: {pod.node} is about to be removed" if node and node.draining else ""
