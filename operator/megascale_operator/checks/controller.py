"""The controller of NodeChecks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from megascale_operator.checks.decide import CheckPlan, plan_check
from megascale_operator.checks.pod import check_pod
from megascale_operator.checks.status import status_of
from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.kube.clock import Clock, unix_s
from megascale_operator.kube.events import EventRecorder
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.kube.resources import NODE_CHECKS, PODS, Obj
from megascale_operator.plan_applier import PlanApplier
from megascale_operator.quarantine.controller import QuarantineController
from megascale_operator.reconcile import names
from megascale_operator.reconcile.observed import Settings
from megascale_operator.reconcile.plan import Apply, Create, Delete, DeletePods, Plan
from megascale_operator.reconcile.records import CheckRecord, PodRecord
from megascale_operator.watching import Cluster

_SETTLE_S: Final = 0.1
_LOOK_AGAIN_S: Final = 15.0
_BAD: Final = ("convicted", "unknown")


@dataclass(frozen=True, slots=True)
class _Spec:
    uid: str
    spec: NodeCheckSpec


class CheckController:
    """Makes check pods, counts what they find, and has nodes released that pass."""

    def __init__(
        self,
        cluster: Cluster,
        applier: PlanApplier,
        recorder: EventRecorder,
        quarantine: QuarantineController,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.queue: KeyedQueue[str] = KeyedQueue(clock.monotonic)
        self._cluster, self._applier, self._recorder = cluster, applier, recorder
        self._quarantine, self._settings, self._clock = quarantine, settings, clock
        self._specs: dict[str, _Spec] = {}
        self._reported: dict[str, dict[str, str]] = {}
        cluster.checks.on_change(self._on_check)
        cluster.pods.on_change(self._on_pod)

    def _on_check(self, before: CheckRecord | None, after: CheckRecord | None) -> None:
        record = after or before
        if record:
            self.queue.add(record.name)

    def _on_pod(self, before: PodRecord | None, after: PodRecord | None) -> None:
        pod = after or before
        if pod and pod.owner_check:
            self.queue.add_after(pod.owner_check, _SETTLE_S)

    async def reconcile(self, name: str) -> float | None:
        """One look at a NodeCheck; when to look again."""
        record = self._cluster.checks.get(name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            self._specs.pop(name, None)
            self._reported.pop(name, None)
            self.queue.forget(name)
            return None
        check, now = record.obj, self._clock.utc()
        pods = self._cluster.pods.of(("", name))
        if (check.get("status") or {}).get("completionTime"):
            return await self._finish(check, pods, now)
        try:
            spec = self._spec(check)
        except ValidationError as error:
            await self._recorder.record(check, "Warning", "InvalidSpec", str(error))
            return None
        nodes = {key[1]: node for key, node in self._cluster.nodes.records.items()}
        found = plan_check(spec, nodes, pods, self._busy(), now)
        await self._record_failures(check, found)
        for node in found.release:
            await self._quarantine.release(node, f"NodeCheck {name}")
        await self._applier.perform(self._plan(check, spec, found, now))
        return None if found.done else _LOOK_AGAIN_S

    def _spec(self, check: Obj) -> NodeCheckSpec:
        """The checked spec; it cannot change."""
        name, uid = check["metadata"]["name"], check["metadata"]["uid"]
        known = self._specs.get(name)
        if known is None or known.uid != uid:
            spec = NodeCheckSpec.model_validate(check["spec"], by_alias=True, by_name=False)
            known = self._specs[name] = _Spec(uid, spec)
        return known.spec

    def _busy(self) -> dict[str, str]:
        """Nodes with a slot of a job on them."""
        return {
            pod.node: pod.name
            for pod in self._cluster.pods.records.values()
            if pod.role == "slot" and pod.node and not pod.finished
        }

    def _plan(self, check: Obj, spec: NodeCheckSpec, found: CheckPlan, now: float) -> Plan:
        plan = Plan()
        namespace, image = self._settings.namespace, self._settings.image
        plan.then(
            *(
                Create(PODS, check_pod(check, spec, node, number, namespace, image))
                for node, number in found.start
            )
        )
        status = status_of(check, found, now)
        before = check.get("status") or {}
        if any(before.get(key) != value for key, value in status.items()):
            body = {"metadata": {"name": check["metadata"]["name"]}, "status": status}
            plan.then(Apply(NODE_CHECKS, body, "status"))
        return plan

    async def _finish(self, check: Obj, pods: list[PodRecord], now: float) -> float | None:
        """Remove what is left of a completed check, and in the end the check itself."""
        plan, name = Plan(), check["metadata"]["name"]
        again_s = None
        if any(not pod.deleting_since for pod in pods):
            plan.then(DeletePods(self._settings.namespace, f"{names.SELECTOR},{names.CHECK}={name}"))
            again_s = _LOOK_AGAIN_S
        ttl_s = check["spec"].get("ttlSecondsAfterFinished")
        if ttl_s is not None:
            left_s = unix_s(check["status"]["completionTime"]) + ttl_s - now
            if left_s <= 0:
                plan.then(Delete(NODE_CHECKS, "", name, check["metadata"]["uid"]))
            else:
                again_s = left_s
        await self._applier.perform(plan)
        return again_s

    async def _record_failures(self, check: Obj, found: CheckPlan) -> None:
        """One Event for each node that did not pass."""
        reported = self._reported.setdefault(check["metadata"]["name"], {})
        for node, outcome in found.outcomes.items():
            if outcome.result in _BAD and reported.get(node) != outcome.result:
                reported[node] = outcome.result
                kind = "Warning" if outcome.result == "convicted" else "Normal"
                await self._recorder.record(
                    check, kind, outcome.result.capitalize(), f"{node}: {outcome.reason}"
                )
