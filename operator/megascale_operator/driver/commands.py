"""Watches the TrainingJob and forwards spec changes, its deletion and users' commands to the driver."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from megascale.core.api import Command, JobState
from megascale.core.api import events as ev
from megascale.driver.api import RunningDriver
from megascale.errors import FencedError, InputError, ManifestError
from megascale.job.api import TrainingJob, from_mapping
from megascale.rpc import megascale_pb2 as pb
from megascale_operator.driver.fleet import KubernetesFleet
from megascale_operator.driver.follow import follow
from megascale_operator.driver.status import StatusWriter
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.resources import TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DetectionDefaults
from megascale_operator.user_command import parse_command

log = logging.getLogger(__name__)


def checkpoint_uri(job_file: Path) -> str:
    """Read the checkpoint URI from the manifest that the operator wrote for the slots.

    Returns "" if there is none, in which case checkpoints are written within the pods.
    """
    try:
        spec = json.loads(job_file.read_text())["spec"]
    except FileNotFoundError:
        return ""
    return str((spec.get("checkpoint") or {}).get("uri") or "")


def manifest_of(job: Obj, uri: str, detection: DetectionDefaults | None = None) -> TrainingJob:
    """Convert a TrainingJob object to the manifest that its slots run.

    Args:
        uri: checkpoint URI to use if the spec has none; "" = checkpoints are written within the pods.
        detection: the cluster's defaults for fields that `spec.detection` leaves out.

    Raises:
        ManifestError: the spec is not valid.
    """
    mapping = {key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    checkpoint = job["spec"].get("checkpoint") or {}
    if uri and not checkpoint.get("uri"):
        mapping["spec"] = {**job["spec"], "checkpoint": {**checkpoint, "uri": uri}}
    return from_mapping(detection.fill(mapping) if detection else mapping)


def starting_manifest(
    job: Obj, job_file: Path, detection: DetectionDefaults | None = None
) -> tuple[TrainingJob, int]:
    """Return the manifest to start with and the generation of its spec.

    If the job's newest spec is invalid, these are the last valid spec, which the operator keeps in
    `job_file`, and its generation.

    Raises:
        ManifestError: neither is valid.
    """
    uri = checkpoint_uri(job_file)
    try:
        return manifest_of(job, uri, detection), int(job["metadata"].get("generation", 0))
    except ManifestError as error:
        try:
            spec = json.loads(job_file.read_text())["spec"]
        except FileNotFoundError:
            raise error from None
        manifest = manifest_of({**job, "spec": spec}, uri, detection)
        log.warning("the job's spec is not valid, the last valid one is used: %s", error)
        return manifest, int((job.get("status") or {}).get("observedGeneration") or 0)


class CommandWatcher:
    """A background service that watches the TrainingJob for the driver.

    Args:
        job: the TrainingJob object that the driver started with.
        generation: `metadata.generation` of the spec that the driver started with.
        uri, detection: see `manifest_of`.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        job: Obj,
        generation: int,
        fleet: KubernetesFleet,
        status: StatusWriter,
        uri: str = "",
        detection: DetectionDefaults | None = None,
    ) -> None:
        self._uri, self._detection = uri, detection
        self._api, self._namespace, self._fleet, self._status = api, namespace, fleet, status
        self._name: str = job["metadata"]["name"]
        self._uid: str = job["metadata"]["uid"]
        self._deleting = False
        said = (job.get("status") or {}).get("driver") or {}
        # A command that an earlier driver answered must not be executed again.
        status.last_command = said.get("lastCommand")
        status.generation = generation
        self._refused_generation = 0

    async def run(self, driver: RunningDriver) -> None:
        async for found in follow(self._api, TRAINING_JOBS, self._name, self._namespace):
            if found is None or found["metadata"]["uid"] != self._uid:
                raise FencedError(f"the TrainingJob {self._name} was deleted")
            self.take(driver, found)

    def take(self, driver: RunningDriver, job: Obj) -> None:
        """Handle a new version of the TrainingJob.

        Raises:
            FencedError: a driver of a higher term wrote the status.
        """
        status = job.get("status") or {}
        if int((status.get("driver") or {}).get("term") or 0) > driver.term:
            raise FencedError(f"a driver of a higher term than {driver.term} wrote the status")
        self._fleet.take_answers(status.get("operator") or {})
        newest = int(job["metadata"].get("generation", 0))
        if newest > max(self._status.generation, self._refused_generation):
            self._change_spec(driver, job)
        annotations = job["metadata"].get("annotations") or {}
        if annotations.get(names.COMMAND):
            self._handle_command(driver, str(annotations[names.COMMAND]))
        if job["metadata"].get("deletionTimestamp") and not self._deleting:
            self._deleting = True
            if driver.core.record.state is not JobState.FINISHED:
                driver.post(ev.ManualCommand(Command.STOP, "the TrainingJob was deleted"))

    def _change_spec(self, driver: RunningDriver, job: Obj) -> None:
        generation = int(job["metadata"]["generation"])
        try:
            driver.change_spec(manifest_of(job, self._uri, self._detection))
        except InputError as error:
            driver.board.alert(f"generation {generation} of the spec is not good and not used: {error}")
            self._refused_generation = generation
        else:
            self._status.generation = generation
        driver.changed.set()

    def _handle_command(self, driver: RunningDriver, text: str) -> None:
        """Forward the command in the annotation unless its id is that of the last answered command."""
        order = parse_command(text)
        if not order or order["id"] == (self._status.last_command or {}).get("id"):
            return
        words = {key: str(order.get(key) or "") for key in ("command", "node", "reason", "by")}
        ok, message = driver.command(pb.CommandRequest(**words))
        self._status.last_command = {"id": order["id"], "ok": ok, "message": message[:500]}
        driver.changed.set()
