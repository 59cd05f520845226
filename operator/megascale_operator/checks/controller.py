"""The NodeCheck controller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from megascale_operator.checks.decide import CheckPlan, plan_check
from megascale_operator.checks.pod import check_pod
from megascale_operator.checks.status import status_of
from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.informers import Informers
from megascale_operator.kube.clock import Clock, unix_s
from megascale_operator.kube.events import EventRecorder
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.kube.resources import NODE_CHECKS, PODS, Obj
from megascale_operator.plan_applier import PlanApplier
from megascale_operator.quarantine.controller import QuarantineController
from megascale_operator.reconcile import names
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.observed import Settings
from megascale_operator.reconcile.plan import Apply, Create, Delete, DeletePods, Plan
from megascale_operator.reconcile.records import CheckRecord, PodRecord

_SETTLE_S: Final = 0.1
_RESYNC_S: Final = 15.0
_NOT_PASSED: Final = ("convicted", "unknown")


@dataclass(frozen=True, slots=True)
class _Spec:
    uid: str
    spec: NodeCheckSpec


class CheckController:
    """Creates check pods, reports their results in the status, and releases quarantined nodes that pass."""

    def __init__(
        self,
        informers: Informers,
        applier: PlanApplier,
        recorder: EventRecorder,
        quarantine: QuarantineController,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.queue: KeyedQueue[str] = KeyedQueue(clock.monotonic)
        self._informers, self._applier, self._recorder = informers, applier, recorder
        self._quarantine, self._settings, self._clock = quarantine, settings, clock
        self._specs: dict[str, _Spec] = {}
        self._reported: dict[str, dict[str, str]] = {}
        informers.checks.on_change(self._on_check)
        informers.pods.on_change(self._on_pod)

    def _on_check(self, before: CheckRecord | None, after: CheckRecord | None) -> None:
        record = after or before
        if record:
            self.queue.add(record.name)

    def _on_pod(self, before: PodRecord | None, after: PodRecord | None) -> None:
        pod = after or before
        if pod and pod.owner_check:
            self.queue.add_after(pod.owner_check, _SETTLE_S)

    async def reconcile(self, name: str) -> float | None:
        """Reconcile one NodeCheck; return the seconds after which to reconcile it again, None for never."""
        record = self._informers.checks.get(name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            self._specs.pop(name, None)
            self._reported.pop(name, None)
            self.queue.forget(name)
            return None
        check, now = record.obj, self._clock.utc()
        pods = self._informers.pods.of(("", name))
        if (check.get("status") or {}).get("completionTime"):
            return await self._finish(check, pods, now)
        try:
            spec = self._spec(check)
        except ValidationError as error:
            await self._recorder.record(check, "Warning", "InvalidSpec", str(error))
            return None
        nodes = {key[1]: node for key, node in self._informers.nodes.records.items()}
        result = plan_check(spec, nodes, pods, self._busy(), now)
        await self._record_failures(check, result)
        for node in result.release:
            await self._quarantine.release(node, f"NodeCheck {name}", mark_of(nodes[node]))
        await self._applier.apply(self._plan(check, spec, result, now))
        return None if result.done else _RESYNC_S

    def _spec(self, check: Obj) -> NodeCheckSpec:
        """Return the validated spec, which is immutable and therefore cached.

        Raises:
            ValidationError: the spec is invalid.
        """
        name, uid = check["metadata"]["name"], check["metadata"]["uid"]
        cached = self._specs.get(name)
        if cached is None or cached.uid != uid:
            spec = NodeCheckSpec.model_validate(check["spec"], by_alias=True, by_name=False)
            cached = self._specs[name] = _Spec(uid, spec)
        return cached.spec

    def _busy(self) -> dict[str, str]:
        """Return the nodes that run a slot pod, with the name of that pod."""
        return {
            pod.node: pod.name
            for pod in self._informers.pods.records.values()
            if pod.role == "slot" and pod.node and not pod.finished
        }

    def _plan(self, check: Obj, spec: NodeCheckSpec, result: CheckPlan, now: float) -> Plan:
        plan = Plan()
        namespace, image = self._settings.namespace, self._settings.image
        plan.add_step(
            *(
                Create(PODS, check_pod(check, spec, node, number, namespace, image))
                for node, number in result.start
            )
        )
        status = status_of(check, result, now)
        before = check.get("status") or {}
        if any(before.get(key) != value for key, value in status.items()):
            body = {"metadata": {"name": check["metadata"]["name"]}, "status": status}
            plan.add_step(Apply(NODE_CHECKS, body, "status"))
        return plan

    async def _finish(self, check: Obj, pods: list[PodRecord], now: float) -> float | None:
        """Delete the pods of a completed check, and the check itself after ttlSecondsAfterFinished."""
        plan, name = Plan(), check["metadata"]["name"]
        requeue_s = None
        if any(not pod.deleting_since for pod in pods):
            plan.add_step(DeletePods(self._settings.namespace, f"{names.SELECTOR},{names.CHECK}={name}"))
            requeue_s = _RESYNC_S
        ttl_s = check["spec"].get("ttlSecondsAfterFinished")
        if ttl_s is not None:
            left_s = unix_s(check["status"]["completionTime"]) + ttl_s - now
            if left_s <= 0:
                plan.add_step(Delete(NODE_CHECKS, "", name, check["metadata"]["uid"]))
            else:
                requeue_s = left_s
        await self._applier.apply(plan)
        return requeue_s

    async def _record_failures(self, check: Obj, result: CheckPlan) -> None:
        """Record one Event for each node that did not pass."""
        reported = self._reported.setdefault(check["metadata"]["name"], {})
        for node, outcome in result.outcomes.items():
            if outcome.result in _NOT_PASSED and reported.get(node) != outcome.result:
                reported[node] = outcome.result
                kind = "Warning" if outcome.result == "convicted" else "Normal"
                await self._recorder.record(
                    check, kind, outcome.result.capitalize(), f"{node}: {outcome.reason}"
                )
