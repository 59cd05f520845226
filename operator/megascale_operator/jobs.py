"""The TrainingJob controller: queues jobs whose objects changed, computes their plans and applies them."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from megascale.errors import ManifestError
from megascale.job.api import MANAGER, from_mapping
from megascale_operator.informers import Informers
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
from megascale_operator.reconcile.invalid_spec import InvalidSpec, plan_without_manifest
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
from megascale_operator.reconcile.slots_file import SlotsFile
from megascale_operator.tls.authority import Authority, RequestRefusedError, utc

log = logging.getLogger(__name__)

_SETTLE_S: Final = 0.1
_SETTLE_PER_POD_S: Final = 0.00025
"""A job is reconciled this long after a change of its pods, so that further changes are handled in the same
reconcile. The delay grows with the number of pods: a reconcile of 1,536 slots takes 0.04 s."""
_MAX_ENDED: Final = 4096


@dataclass(slots=True)
class _LocalState:
    """Per-job state that is not stored in the cluster; after a restart it is rebuilt from `slots.json`.

    Attributes:
        ended: last records of deleted slot pods that `slots.json` does not list as gone yet, by uid.
        incarnations: highest incarnation seen of each slot.
        slots_written_at: Unix seconds of this process' last write of `slots.json`.
        status_written_at: Unix seconds of its last write of the status.
        manifest: the last valid job, with the (uid, generation) of its spec.
        invalid: the (uid, generation) of the last spec that was refused, with the message.
    """

    ended: dict[str, PodRecord] = field(default_factory=dict)
    incarnations: dict[int, int] = field(default_factory=dict)
    slots_written_at: float = 0.0
    status_written_at: float = 0.0
    manifest: tuple[tuple[str, int], Job] | None = None
    invalid: tuple[tuple[str, int], str] | None = None


class JobController:
    """Reconciles TrainingJobs and the objects they own.

    Attributes:
        authority: the CA that signs driver certificates, None until this process becomes the leader.
    """

    def __init__(
        self,
        api: KubeApi,
        informers: Informers,
        applier: PlanApplier,
        recorder: EventRecorder,
        quarantine: QuarantineController,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue(clock.monotonic)
        self.authority: Authority | None = None
        self._api, self._informers, self._applier = api, informers, applier
        self._recorder, self._quarantine, self._settings, self._clock = recorder, quarantine, settings, clock
        self._local_states: defaultdict[ObjectKey, _LocalState] = defaultdict(_LocalState)
        self._gone_nodes: set[str] = set()
        informers.jobs.on_change(self._on_job)
        informers.pods.on_change(self._on_pod)
        informers.nodes.on_change(self._on_node)
        for informer in informers.owned:
            informer.on_change(self._on_owned)
        quarantine.on_result(self.queue.add)

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
            local = self._local_states[key]
            local.incarnations[pod.slot] = max(pod.incarnation, local.incarnations.get(pod.slot, 0))
            if after is None:
                local.ended[pod.uid] = pod
                if len(local.ended) > _MAX_ENDED:
                    del local.ended[next(iter(local.ended))]
        self._enqueue_after_settle(key)

    def _enqueue_after_settle(self, key: ObjectKey) -> None:
        self.queue.add_after(key, _SETTLE_S + _SETTLE_PER_POD_S * self._informers.pods.count(key))

    def _on_node(self, before: NodeRecord | None, after: NodeRecord | None) -> None:
        if before and after and same_for_jobs(before, after):
            return
        node = after or before
        if node is None:
            return
        self._gone_nodes.discard(node.name)
        for pod in self._informers.pods.records.values():
            if pod.node == node.name and pod.job:
                self._enqueue_after_settle((pod.namespace, pod.job))

    def _on_owned(self, before: OwnedObject | None, after: OwnedObject | None) -> None:
        owned_object = after or before
        if owned_object is None or not owned_object.job:
            return
        if before and after and (before.digest, before.data) == (after.digest, after.data):
            return
        self._enqueue_after_settle((owned_object.namespace, owned_object.job))

    def begin_leading(self) -> None:
        """Forget pods that ended while another replica led, except those that `slots.json` still lists."""
        for key, local in self._local_states.items():
            maps = {owned_object.name: owned_object for owned_object in self._informers.maps.of(key)}
            slots = maps.get(names.slots_map(key[1]))
            file = SlotsFile.parse(slots.text("slots.json") if slots else "")
            listed = {entry["uid"] for entry in file.slots}
            local.ended = {uid: pod for uid, pod in local.ended.items() if uid in listed}

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile one TrainingJob; return the seconds after which to reconcile it again, None for never."""
        record = self._informers.jobs.get(key[1], key[0])
        if record is None:
            self._local_states.pop(key, None)
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
        local = self._local_states[key]
        pods = tuple(self._informers.pods.of(key))
        if obj["metadata"].get("deletionTimestamp"):
            return await self._apply_plan(obj, delete(obj, pods, now))
        job = await self._job(obj, local)
        if isinstance(job, str):
            return await self._apply_plan(obj, plan_without_manifest(obj, job, now))
        requests = requests_of(job)
        self._quarantine.set_requests(key, job.spec.remediation.mode, requests.quarantine, granted_to(job))
        observed = await self._observe(job, key, local, pods, now)
        plan = reconcile(job, observed, self._settings, now)
        requeue_s = await self._apply_plan(obj, plan)
        applied_at = self._clock.utc()
        if _applies(plan, TRAINING_JOBS, job.name):
            local.status_written_at = applied_at
        if _applies(plan, CONFIG_MAPS, names.slots_map(job.name)):
            local.slots_written_at = applied_at
            for pod in observed.ended:
                local.ended.pop(pod.uid, None)
        return requeue_s

    async def _job(self, obj: Obj, local: _LocalState) -> Job | str:
        """Return the validated job; the result is cached until the spec changes.

        If the spec is invalid, the job has the last valid one, so that pods are still replaced and deadlines
        kept; without any, return the message that names the wrong fields.
        """
        meta = obj["metadata"]
        version = (str(meta["uid"]), int(meta.get("generation", 0)))
        if local.manifest and local.manifest[0] == version:
            return Job(obj, local.manifest[1].manifest)
        if local.invalid is None or local.invalid[0] != version:
            try:
                job = _validated(obj)
            except ManifestError as error:
                local.invalid = (version, str(error))
            else:
                local.manifest = (version, job)
                return job
        message = local.invalid[1]
        if local.manifest is None or local.manifest[0][0] != version[0]:
            local.manifest = await self._stored_job(obj)
        if local.manifest is None:
            return message
        (_, generation), valid = local.manifest
        return Job({**obj, "spec": valid.obj["spec"]}, valid.manifest, InvalidSpec(message, generation))

    async def _stored_job(self, obj: Obj) -> tuple[tuple[str, int], Job] | None:
        """Return the job with the spec in the ConfigMap `<job>-job`, None if there is no valid one."""
        meta = obj["metadata"]
        try:
            found = await self._api.get(CONFIG_MAPS, names.job_map(meta["name"]), meta["namespace"])
            text = (found.get("data") or {}).get("job.yaml", "")
            job = _validated({**obj, "spec": json.loads(text)["spec"]})
        except (NotFoundError, ManifestError, ValueError, KeyError, TypeError) as error:
            log.warning("%s/%s has no valid spec: %s", meta["namespace"], meta["name"], error)
            return None
        if all(owner["uid"] != meta["uid"] for owner in found["metadata"].get("ownerReferences") or ()):
            return None
        generation = int((obj.get("status") or {}).get("observedGeneration") or 0)
        return (str(meta["uid"]), generation), job

    async def _observe(
        self, job: Job, key: ObjectKey, local: _LocalState, pods: tuple[PodRecord, ...], now: float
    ) -> Observed:
        await self._confirm_missing_nodes(pods)
        owned = {
            (informer.resource.kind, owned_object.name): owned_object
            for informer in self._informers.owned
            for owned_object in informer.of(key)
        }
        gone = frozenset(pod.node for pod in pods) & self._gone_nodes
        granted, refused = self._quarantine.results(key)
        records = {
            pod.node: node for pod in pods if (node := self._informers.nodes.get(pod.node)) is not None
        }
        return Observed(
            pods=pods,
            nodes=Nodes(records, gone),
            owned=owned,
            ended=tuple(local.ended.values()),
            incarnations=dict(local.incarnations),
            ca_pem=self.authority.certificate_pem if self.authority else "",
            driver_crt=await self._certificate(job, owned, now),
            granted=granted,
            refused=refused,
            slots_written_at=local.slots_written_at,
            status_written_at=local.status_written_at,
        )

    async def _confirm_missing_nodes(self, pods: tuple[PodRecord, ...]) -> None:
        """Look up nodes that are not in the cache on the API server, and remember those that do not exist."""
        missing = {pod.node for pod in pods if pod.node and self._informers.nodes.get(pod.node) is None}
        for node in missing - self._gone_nodes:
            try:
                await self._api.get(NODES, node)
            except NotFoundError:
                self._gone_nodes.add(node)

    async def _certificate(self, job: Job, owned: dict[tuple[str, str], OwnedObject], now: float) -> str:
        """Return the driver's certificate as PEM: the current one if it is still valid, else a new one.

        Returns "" if the driver has published no CSR, or one that is refused.
        """
        driver = owned.get(("ConfigMap", names.driver_map(job.name)))
        slots = owned.get(("ConfigMap", names.slots_map(job.name)))
        csr = driver.text("driver.csr") if driver else ""
        if not csr or self.authority is None:
            return ""
        current = slots.text("driver.crt") if slots else ""
        if current and self.authority.is_current(current, csr, utc(now)):
            return current
        try:
            return self.authority.sign(csr, names.server_name(job.name, job.namespace), utc(now))
        except RequestRefusedError as error:
            await self._recorder.record(job.obj, "Warning", "CertificateRefused", str(error))
            return ""

    async def _apply_plan(self, obj: Obj, plan: Plan) -> float | None:
        try:
            await self._applier.apply(plan)
        except RefusedError as error:
            await self._recorder.record(obj, "Warning", "Refused", str(error))
            raise
        finally:
            for event in plan.events:
                await self._recorder.record(obj, event.type, event.reason, event.message)
        return plan.requeue_s


def _validated(obj: Obj) -> Job:
    return Job(obj, from_mapping({key: value for key, value in obj.items() if key != "status"}))


def _applies(plan: Plan, resource: Resource, name: str) -> bool:
    return any(
        isinstance(action, Apply) and action.resource is resource and action.body["metadata"]["name"] == name
        for action in plan.actions
    )
