"""Why a slot pod is leaving or gone. A planned departure is no failure and charges no restart budget."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from megascale_operator.reconcile.job import Requests
from megascale_operator.reconcile.records import Nodes, PodRecord

RESTART_EXIT: Final = 75
"""Exit code with which the agent requests a restart of its container."""
_CRASHES: Final = 3
_FAULTS: Final = ("failed", "check", "node")
_NODE_FAULTS: Final = ("DeletionByPodGC", "DeletionByTaintManager")
_PLANNED_REASONS: Final = ("Evicted", "Preempting", "Terminated", "NodeShutdown", "Shutdown")


@dataclass(frozen=True, slots=True)
class Departure:
    """A departure; `reason` begins with its kind.

    The kinds evicted, drained, deleted, released and restart are planned; failed, check and node are not.
    """

    reason: str

    @property
    def planned(self) -> bool:
        return self.was_planned(self.reason)

    @staticmethod
    def was_planned(reason: str) -> bool:
        """Return whether the departure with this reason was planned, not caused by a fault of pod or node."""
        return not reason.startswith(_FAULTS)


def departure_of(pod: PodRecord, nodes: Nodes, requests: Requests) -> Departure | None:
    """Return why the pod is leaving, None if it is not.

    If several reasons apply, the most specific one is returned: a request of the driver, a DisruptionTarget
    condition, a lost node, a failed pod, a drained node, any other deletion.
    """
    reason = (
        _requested(pod, requests)
        or _disrupted(pod)
        or _lost(pod, nodes)
        or _faulty(pod)
        or _drained(pod, nodes)
        or ("deleted" if pod.deleting_since else "")
    )
    return Departure(reason) if reason else None


def outcome_of(pod: PodRecord, nodes: Nodes, requests: Requests, reported: str) -> Departure:
    """Return why the pod is gone; `reported` is its earlier reason in `slots.json`, "" for none."""
    if reported and reported != "deleted":
        return Departure(reported)
    leaving = departure_of(pod, nodes, requests)
    if pod.phase == "Succeeded":
        # The agent exits 0 on any request to stop: only without a deletion of the pod was it the driver's.
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
    """Return whether the agent failed after the kubelet restarted it _CRASHES times or is in back-off."""
    return (
        pod.exit not in (None, 0, RESTART_EXIT)
        and (pod.looping or pod.restarts >= _CRASHES)
        and not pod.ready
    )


def conviction(pod: PodRecord) -> str:
    """Return why the check before joining convicted the pod's node, "" if it did not."""
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
    for name, request_id in requests.restart:
        if name == pod.name:
            return f"restart: {request_id}"
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
