"""Checkpoints of jobs without checkpoint.uri: the operator's --checkpoint-root."""

from __future__ import annotations

from typing import Any

import pytest
from kube_world import job_object
from megascale_operator.driver.commands import manifest_of
from megascale_operator.reconcile.storage import MOUNT_PATH, CheckpointRoot

from megascale.errors import InputError
from megascale.job import from_mapping


def filled(root: str, **spec: Any) -> Any:
    checkpoint_root = CheckpointRoot.parse(root)
    assert checkpoint_root is not None
    obj = checkpoint_root.fill(job_object("q", **spec))
    return from_mapping({key: value for key, value in obj.items() if key != "status"}).spec


@pytest.mark.parametrize(
    ("root", "source"),
    [
        ("/shared/jobs", {"hostPath": {"path": "/shared/jobs", "type": "Directory"}}),
        ("claim:checkpoints", {"persistentVolumeClaim": {"claimName": "checkpoints"}}),
    ],
)
def test_a_folder_or_a_claim_is_mounted_beside_what_the_job_mounts(root: str, source: dict[str, Any]) -> None:
    mine = {"name": "mine", "emptyDir": {}}
    slot = {"name": "slot", "volumeMounts": [{"name": "mine", "mountPath": "/mine"}]}
    spec = filled(root, template={"spec": {"volumes": [mine], "containers": [slot]}})
    assert spec.checkpoint.uri == f"{MOUNT_PATH}/team/q-uid-job"
    volumes = [one.model_dump(by_alias=True, exclude_none=True) for one in spec.template.spec.volumes]
    assert volumes == [mine, {"name": "default-checkpoints", **source}]
    mounts = {
        one.name: [mount.mount_path for mount in one.volume_mounts] for one in spec.template.spec.containers
    }
    assert mounts == {"slot": ["/mine", MOUNT_PATH], "driver": [MOUNT_PATH]}


def test_the_job_s_own_uri_takes_precedence() -> None:
    spec = filled("/shared/jobs", checkpoint={"uri": "file:///mine/q", "keep": 7})
    assert (spec.checkpoint.uri, spec.checkpoint.keep) == ("file:///mine/q", 7)
    assert not spec.template.spec.volumes


def test_the_driver_uses_the_uri_of_its_slots() -> None:
    assert manifest_of(job_object("q"), "/mnt/x").spec.checkpoint.uri == "/mnt/x"
    assert manifest_of(job_object("q", checkpoint={"uri": "/b/q"}), "/mnt/x").spec.checkpoint.uri == "/b/q"


@pytest.mark.parametrize("root", ["relative/folder", "claim:", "bucket", "s3://bucket/all", "file:///shared"])
def test_other_forms_are_refused(root: str) -> None:
    with pytest.raises(InputError, match="--checkpoint-root"):
        CheckpointRoot.parse(root)
