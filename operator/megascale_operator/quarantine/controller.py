"""The quarantine controller. It processes one node at a time, so that the breaker counts every quarantine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import NotFoundError
from megascale_operator.kube.events import EventRecorder
from megascale_operator.kube.informer import Informer, ObjectKey
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.kube.resources import NODES, Obj
from megascale_operator.metrics import Metrics
from megascale_operator.quarantine import patches
from megascale_operator.quarantine.breaker import Limits, breaker_open_reason
from megascale_operator.quarantine.decide import Decision, JobRequest, decide, detect_manual_release
from megascale_operator.quarantine.patches import Operations
from megascale_operator.reconcile.job import QuarantineRequest
from megascale_operator.reconcile.mark import Mark, mark_of
from megascale_operator.reconcile.records import NodeRecord

log = logging.getLogger(__name__)

_RESYNC_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Result:
    """The last decision on a request."""

    granted: bool
    reason: str = ""


class QuarantineController:
    """Decides the quarantine requests of jobs and patches nodes.

    `set_requests` stores the requests of a job, `reconcile` decides those for one node, `results` returns the
    decisions for a job.
    """

    def __init__(
        self,
        api: KubeApi,
        nodes: Informer[NodeRecord],
        recorder: EventRecorder,
        metrics: Metrics,
        clock: Clock,
        *,
        mode: str,
        limits: Limits,
    ) -> None:
        self.queue: KeyedQueue[str] = KeyedQueue(clock.monotonic)
        self._api, self._nodes, self._recorder, self._metrics = api, nodes, recorder, metrics
        self._clock, self._mode, self._limits = clock, mode, limits
        self._requests: dict[ObjectKey, tuple[JobRequest, ...]] = {}
        self._results: dict[tuple[ObjectKey, str, str], _Result] = {}
        self._notify_job: Callable[[ObjectKey], None] = lambda _: None
        nodes.on_change(self._on_node)

    def on_result(self, notify: Callable[[ObjectKey], None]) -> None:
        """Set the function that is called with a job's key when its results change."""
        self._notify_job = notify

    def begin_leading(self) -> None:
        """Forget requests and results, which another leader may have decided in the meantime.

        `set_requests` brings back both from the jobs' status, and queues the nodes.
        """
        self._requests.clear()
        self._results.clear()

    def set_requests(
        self,
        job: ObjectKey,
        mode: str,
        quarantine_requests: tuple[QuarantineRequest, ...],
        granted: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """Replace the requests of a job.

        Args:
            mode: the job's `remediation.mode`.
            granted: (node, incident) of requests that the job's status lists as granted, possibly by an
                earlier leader.
        """
        name = "/".join(job)
        requests = tuple(
            JobRequest(name, one.node, one.incident, one.reason, mode, one.cause)
            for one in quarantine_requests
        )
        if requests == self._requests.get(job, ()):
            return
        self._requests[job] = requests
        wanted = {(request.node, request.incident) for request in requests}
        for key in [key for key in self._results if key[0] == job and key[1:] not in wanted]:
            del self._results[key]
        for request in requests:
            if (request.node, request.incident) in granted:
                self._results.setdefault((job, request.node, request.incident), _Result(granted=True))
            self.queue.add(request.node)

    def forget(self, job: ObjectKey) -> None:
        """Drop the requests and results of a deleted job."""
        self.set_requests(job, "Observe", ())
        self._requests.pop(job, None)

    def results(self, job: ObjectKey) -> tuple[tuple[tuple[str, str], ...], tuple[Obj, ...]]:
        """Return (node, incident) of granted requests, and the refused requests without their time."""
        results = [(key[1], key[2], result) for key, result in self._results.items() if key[0] == job]
        granted = tuple((node, incident) for node, incident, result in results if result.granted)
        refused = tuple(
            {"request": "quarantine", "node": node, "incident": incident, "reason": result.reason}
            for node, incident, result in results
            if not result.granted
        )
        return granted, refused

    def _on_node(self, before: NodeRecord | None, after: NodeRecord | None) -> None:
        node = after or before
        if node is None:
            return
        if before and after and _same(before, after):
            return
        if (
            node.quarantine
            or node.tainted
            or any(request.node == node.name for requests in self._requests.values() for request in requests)
        ):
            self.queue.add(node.name)

    async def reconcile(self, name: str) -> float | None:
        """Reconcile one node; return the seconds after which to reconcile it again, None for never."""
        node, now = self._nodes.get(name), self._clock.utc()
        if node is not None:
            operations = detect_manual_release(node, now)
            if operations:
                log.info("%s was put back into service by a person", name)
                self._metrics.releases.labels("person").inc()
                await self._patch(name, operations, "Released", "put back into service by a person")
                node = self._nodes.get(name)
        requeue_s = _RESYNC_S if node is not None and node.quarantine else None
        for job, request in self._requests_for(name):
            before = self._results.get((job, name, request.incident))
            decision = decide(
                node,
                request,
                self._mode,
                self._breaker(now),
                now,
                granted_before=before is not None and before.granted,
            )
            if decision.operations:
                await self._quarantine(name, request, decision)
                node = self._nodes.get(name)
            self._store_result(job, request, decision)
            if decision.requeue_s is not None:
                requeue_s = min(requeue_s or decision.requeue_s, decision.requeue_s)
        self._update_metrics(now)
        return requeue_s

    async def release(self, name: str, by: str, mark: Mark | None) -> None:
        """Put a node back into service: remove only what the operator set.

        Args:
            by: who releases it, for the Event.
            mark: the mark that the release was decided on; a node with another one is left alone.
        """
        node = self._nodes.get(name)
        if node is None or not (node.quarantine or node.tainted) or mark_of(node) != mark:
            return
        await self._patch(name, patches.release(node), "Released", f"put back into service by {by}")
        self._metrics.releases.labels("check").inc()

    def _requests_for(self, node: str) -> list[tuple[ObjectKey, JobRequest]]:
        return [
            (job, request)
            for job, requests in self._requests.items()
            for request in requests
            if request.node == node
        ]

    def _breaker(self, now: float) -> str:
        return breaker_open_reason(self._nodes.records.values(), self._limits, now)

    async def _quarantine(self, name: str, request: JobRequest, decision: Decision) -> None:
        mode = decision.mark.mode if decision.mark else ""
        message = f"{mode}: {request.reason} (job {request.job}, {request.incident})"
        await self._patch(name, decision.operations, "Quarantined", message)
        self._metrics.quarantines.labels(mode).inc()

    async def _patch(self, name: str, operations: Operations, reason: str, message: str) -> None:
        try:
            response = await self._api.patch(NODES, name, operations, kind="json")
        except NotFoundError:
            return
        self._nodes.absorb(response)
        kind = "Warning" if reason == "Quarantined" else "Normal"
        await self._recorder.record(response, kind, reason, message)

    def _store_result(self, job: ObjectKey, request: JobRequest, decision: Decision) -> None:
        key = (job, request.node, request.incident)
        result = _Result(decision.granted, decision.refused)
        before = self._results.get(key)
        if before == result:
            return
        self._results[key] = result
        if not result.granted and (before is None or before.granted):
            self._metrics.refusals.labels(decision.cause or "unknown").inc()
        self._notify_job(job)

    def _update_metrics(self, now: float) -> None:
        self._metrics.breaker_open.set(bool(self._breaker(now)))
        self._metrics.quarantined.set(sum(1 for node in self._nodes.records.values() if node.quarantine))


def _same(before: NodeRecord, after: NodeRecord) -> bool:
    return (before.unschedulable, before.taints, before.quarantine) == (
        after.unschedulable,
        after.taints,
        after.quarantine,
    )
