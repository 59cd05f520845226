"""The controller of nodes: one at a time, so that the breaker's count is never stale."""

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
from megascale_operator.quarantine.breaker import Limits, closed_because
from megascale_operator.quarantine.decide import Decision, JobRequest, decide, put_back_by_person
from megascale_operator.quarantine.patches import Operations
from megascale_operator.reconcile.job import QuarantineRequest
from megascale_operator.reconcile.records import NodeRecord

log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """How a request was last decided."""

    granted: bool
    reason: str = ""


class QuarantineController:
    """Takes jobs' requests (`ask`), decides them node by node (`reconcile`), and tells jobs (`answers`)."""

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
        self._answers: dict[tuple[ObjectKey, str, str], _Answer] = {}
        self._notify_job: Callable[[ObjectKey], None] = lambda _: None
        nodes.on_change(self._on_node)

    def on_answer(self, notify: Callable[[ObjectKey], None]) -> None:
        """`notify(job)` is called when there is something new in its answers."""
        self._notify_job = notify

    def ask(
        self,
        job: ObjectKey,
        mode: str,
        asked: tuple[QuarantineRequest, ...],
        granted: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """All that a job requests now.

        Args:
            granted: (node, incident) that the job's status lists as granted, by whichever operator.
        """
        name = "/".join(job)
        requests = tuple(JobRequest(name, one.node, one.incident, one.reason, mode) for one in asked)
        if requests == self._requests.get(job, ()):
            return
        self._requests[job] = requests
        wanted = {(request.node, request.incident) for request in requests}
        for key in [key for key in self._answers if key[0] == job and key[1:] not in wanted]:
            del self._answers[key]
        for request in requests:
            if (request.node, request.incident) in granted:
                self._answers.setdefault((job, request.node, request.incident), _Answer(granted=True))
            self.queue.add(request.node)

    def forget(self, job: ObjectKey) -> None:
        self.ask(job, "Observe", ())
        self._requests.pop(job, None)

    def answers(self, job: ObjectKey) -> tuple[tuple[tuple[str, str], ...], tuple[Obj, ...]]:
        """(node, incident) that were granted, and refusals."""
        mine = [(key[1], key[2], answer) for key, answer in self._answers.items() if key[0] == job]
        granted = tuple((node, incident) for node, incident, answer in mine if answer.granted)
        refused = tuple(
            {"request": "quarantine", "node": node, "incident": incident, "reason": answer.reason}
            for node, incident, answer in mine
            if not answer.granted
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
        """One look at a node."""
        node, now = self._nodes.get(name), self._clock.utc()
        if node is not None:
            operations = put_back_by_person(node, now)
            if operations:
                log.info("%s was put back into service by a person", name)
                self._metrics.releases.labels("person").inc()
                await self._patch(name, operations, "Released", "put back into service by a person")
                node = self._nodes.get(name)
        again_s = _LOOK_AGAIN_S if node is not None and node.quarantine else None
        for job, request in self._asking(name):
            before = self._answers.get((job, name, request.incident))
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
            self._answer(job, request, decision)
            if decision.again_s is not None:
                again_s = min(again_s or decision.again_s, decision.again_s)
        self._measure(now)
        return again_s

    async def release(self, name: str, by: str) -> None:
        """Put a node back into service: undo what was set by us, and only that."""
        node = self._nodes.get(name)
        if node is None or not (node.quarantine or node.tainted):
            return
        await self._patch(name, patches.release(node), "Released", f"put back into service by {by}")
        self._metrics.releases.labels("check").inc()

    def _asking(self, node: str) -> list[tuple[ObjectKey, JobRequest]]:
        return [
            (job, request)
            for job, requests in self._requests.items()
            for request in requests
            if request.node == node
        ]

    def _breaker(self, now: float) -> str:
        return closed_because(self._nodes.records.values(), self._limits, now)

    async def _quarantine(self, name: str, request: JobRequest, decision: Decision) -> None:
        mode = decision.mark.mode if decision.mark else ""
        message = f"{mode}: {request.reason} (job {request.job}, {request.incident})"
        await self._patch(name, decision.operations, "Quarantined", message)
        self._metrics.quarantines.labels(mode).inc()

    async def _patch(self, name: str, operations: Operations, reason: str, message: str) -> None:
        try:
            answer = await self._api.patch(NODES, name, operations, kind="json")
        except NotFoundError:
            return
        self._nodes.absorb(answer)
        kind = "Warning" if reason == "Quarantined" else "Normal"
        await self._recorder.record(answer, kind, reason, message)

    def _answer(self, job: ObjectKey, request: JobRequest, decision: Decision) -> None:
        key = (job, request.node, request.incident)
        answer = _Answer(decision.granted, decision.refused)
        before = self._answers.get(key)
        if before == answer:
            return
        self._answers[key] = answer
        if not answer.granted and (before is None or before.granted):
            self._metrics.refusals.labels(decision.cause or "unknown").inc()
        self._notify_job(job)

    def _measure(self, now: float) -> None:
        self._metrics.breaker_open.set(bool(self._breaker(now)))
        self._metrics.quarantined.set(sum(1 for node in self._nodes.records.values() if node.quarantine))


def _same(before: NodeRecord, after: NodeRecord) -> bool:
    return (before.unschedulable, before.taints, before.quarantine) == (
        after.unschedulable,
        after.taints,
        after.quarantine,
    )
