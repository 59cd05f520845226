"""The controller of TrainingJobs: turns changes into keys, and each key into a plan that is carried out."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from megascale.errors import ManifestError
from megascale.job.api import MANAGER, from_mapping
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import NotFoundError, RefusedError
from megascale_operator.kube.events import EventRecorder
from megascale_operator.kube.informer import ObjectKey
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.kube.resources import (
    CONFIG_MAPS,
    NODES,
    TRAINING_JOBS,
    Obj,
    Resource,
)
from megascale_operator.plan_applier import PlanApplier
from megascale_operator.quarantine.controller import QuarantineController
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job, granted_to, requests_of
from megascale_operator.reconcile.lifecycle import delete
from megascale_operator.reconcile.observed import Observed, Settings
from megascale_operator.reconcile.plan import Apply, Plan
from megascale_operator.reconcile.reconcile import reconcile
from megascale_operator.reconcile.records import (
    JobRecord,
    NodeRecord,
    Nodes,
    OwnedObject,
    PodRecord,
    same_for_jobs,
)
from megascale_operator.tls.authority import Authority, RequestRefusedError, utc
from megascale_operator.watching import Cluster

log = logging.getLogger(__name__)

_SETTLE_S: Final = 0.1
_SETTLE_PER_POD_S: Final = 0.00025
"""Changes of pods are looked at together: a look at 1,536 slots takes 0.04 s."""
_ENDED_KEPT: Final = 4096


@dataclass(slots=True)
class _Memory:
    """What a job's objects do not tell; lost with the process, and then told by `slots.json` instead."""

    ended: dict[str, PodRecord] = field(default_factory=dict)
    incarnations: dict[int, int] = field(default_factory=dict)
    slots_written_at: float = 0.0
    status_written_at: float = 0.0
    manifest: tuple[tuple[str, int], Job] | None = None


class JobController:
    """Owns the objects of jobs. `authority` is set once this process leads."""

    def __init__(
        self,
        api: KubeApi,
        cluster: Cluster,
        applier: PlanApplier,
        recorder: EventRecorder,
        quarantine: QuarantineController,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue(clock.monotonic)
        self.authority: Authority | None = None
        self._api, self._cluster, self._applier = api, cluster, applier
        self._recorder, self._quarantine, self._settings, self._clock = recorder, quarantine, settings, clock
        self._memories: defaultdict[ObjectKey, _Memory] = defaultdict(_Memory)
        self._gone_nodes: set[str] = set()
        cluster.jobs.on_change(self._on_job)
        cluster.pods.on_change(self._on_pod)
        cluster.nodes.on_change(self._on_node)
        for informer in cluster.owned:
            informer.on_change(self._on_owned)
        quarantine.on_answer(self.queue.add)

    def _on_job(self, before: JobRecord | None, after: JobRecord | None) -> None:
        record = after or before
        if record:
            self.queue.add((record.namespace, record.name))

    def _on_pod(self, before: PodRecord | None, after: PodRecord | None) -> None:
        pod = after or before
        if pod is None or not pod.job:
            return
        key = (pod.namespace, pod.job)
        if pod.role == "slot":
            memory = self._memories[key]
            memory.incarnations[pod.slot] = max(pod.incarnation, memory.incarnations.get(pod.slot, 0))
            if after is None and len(memory.ended) < _ENDED_KEPT:
                memory.ended[pod.uid] = pod
        self._enqueue_after_settle(key)

    def _enqueue_after_settle(self, key: ObjectKey) -> None:
        self.queue.add_after(key, _SETTLE_S + _SETTLE_PER_POD_S * self._cluster.pods.count(key))

    def _on_node(self, before: NodeRecord | None, after: NodeRecord | None) -> None:
        if before and after and same_for_jobs(before, after):
            return
        node = after or before
        if node is None:
            return
        self._gone_nodes.discard(node.name)
        for pod in self._cluster.pods.records.values():
            if pod.node == node.name and pod.job:
                self._enqueue_after_settle((pod.namespace, pod.job))

    def _on_owned(self, before: OwnedObject | None, after: OwnedObject | None) -> None:
        owned_object = after or before
        if owned_object is None or not owned_object.job:
            return
        if before and after and (before.digest, before.data) == (after.digest, after.data):
            return
        self._enqueue_after_settle((owned_object.namespace, owned_object.job))

    async def reconcile(self, key: ObjectKey) -> float | None:
        """One look at the job of that key; when to look again."""
        record = self._cluster.jobs.get(key[1], key[0])
        if record is None:
            self._memories.pop(key, None)
            self._quarantine.forget(key)
            self.queue.forget(key)
            return None
        obj = record.obj
        if self._settings.checkpoint_root:
            obj = self._settings.checkpoint_root.fill(obj)
        if self._settings.detection:
            obj = self._settings.detection.fill(obj)
        if (obj["spec"].get("managedBy") or MANAGER) != MANAGER:
            return None
        now = self._clock.utc()
        memory = self._memories[key]
        pods = tuple(self._cluster.pods.of(key))
        if obj["metadata"].get("deletionTimestamp"):
            return await self._carry_out(obj, delete(obj, pods, now))
        try:
            job = self._job(obj, memory)
        except ManifestError as error:
            await self._recorder.record(obj, "Warning", "InvalidSpec", str(error))
            return None
        requests = requests_of(job)
        self._quarantine.ask(key, job.spec.remediation.mode, requests.quarantine, granted_to(job))
        observed = await self._observe(job, key, memory, pods, now)
        plan = reconcile(job, observed, self._settings, now)
        again_s = await self._carry_out(obj, plan)
        done_at = self._clock.utc()
        if _applies(plan, TRAINING_JOBS, job.name):
            memory.status_written_at = done_at
        if _applies(plan, CONFIG_MAPS, names.slots_map(job.name)):
            memory.slots_written_at = done_at
            for pod in observed.ended:
                memory.ended.pop(pod.uid, None)
        return again_s

    def _job(self, obj: Obj, memory: _Memory) -> Job:
        """The checked manifest, remembered until the spec changes."""
        meta = obj["metadata"]
        version = (str(meta["uid"]), int(meta.get("generation", 0)))
        if memory.manifest and memory.manifest[0] == version:
            return Job(obj, memory.manifest[1].manifest)
        job = Job(obj, from_mapping({key: value for key, value in obj.items() if key != "status"}))
        memory.manifest = (version, job)
        return job

    async def _observe(
        self, job: Job, key: ObjectKey, memory: _Memory, pods: tuple[PodRecord, ...], now: float
    ) -> Observed:
        await self._look_for_nodes(pods)
        owned = {
            (informer.resource.kind, owned_object.name): owned_object
            for informer in self._cluster.owned
            for owned_object in informer.of(key)
        }
        gone = frozenset(pod.node for pod in pods) & self._gone_nodes
        granted, refused = self._quarantine.answers(key)
        records = {pod.node: node for pod in pods if (node := self._cluster.nodes.get(pod.node)) is not None}
        return Observed(
            pods=pods,
            nodes=Nodes(records, gone),
            owned=owned,
            ended=tuple(memory.ended.values()),
            incarnations=dict(memory.incarnations),
            ca_pem=self.authority.certificate_pem if self.authority else "",
            driver_crt=await self._certificate(job, owned, now),
            granted=granted,
            refused=refused,
            slots_written_at=memory.slots_written_at,
            status_written_at=memory.status_written_at,
        )

    async def _look_for_nodes(self, pods: tuple[PodRecord, ...]) -> None:
        """A node that is not in the local copy may be new; one that the server does not know is gone."""
        missing = {pod.node for pod in pods if pod.node and self._cluster.nodes.get(pod.node) is None}
        for node in missing - self._gone_nodes:
            try:
                await self._api.get(NODES, node)
            except NotFoundError:
                self._gone_nodes.add(node)

    async def _certificate(self, job: Job, owned: dict[tuple[str, str], OwnedObject], now: float) -> str:
        """The driver's certificate: the one it has while that is good, else a new one; "" = no request."""
        driver = owned.get(("ConfigMap", names.driver_map(job.name)))
        slots = owned.get(("ConfigMap", names.slots_map(job.name)))
        csr = driver.text("driver.csr") if driver else ""
        if not csr or self.authority is None:
            return ""
        current = slots.text("driver.crt") if slots else ""
        if current and self.authority.is_good(current, csr, utc(now)):
            return current
        try:
            return self.authority.sign(csr, names.server_name(job.name, job.namespace), utc(now))
        except RequestRefusedError as error:
            await self._recorder.record(job.obj, "Warning", "CertificateRefused", str(error))
            return ""

    async def _carry_out(self, obj: Obj, plan: Plan) -> float | None:
        try:
            await self._applier.perform(plan)
        except RefusedError as error:
            await self._recorder.record(obj, "Warning", "Refused", str(error))
            raise
        finally:
            for note in plan.notes:
                await self._recorder.record(obj, note.type, note.reason, note.message)
        return plan.requeue_s


def _applies(plan: Plan, resource: Resource, name: str) -> bool:
    return any(
        isinstance(action, Apply) and action.resource is resource and action.body["metadata"]["name"] == name
        for action in plan.actions
    )
