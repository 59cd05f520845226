"""Objects of a job: valid for Kubernetes, restricted, and configured by the template."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from kube_world import World, avoided, job_object, node_object
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.memory import snapshot_mebibytes

from megascale.job.loader import from_mapping

MODEL = {
    "megatron": {
        "model": {"preset": "gpt-175b"},
        "parallelism": {"tensor": 8, "pipeline": 8, "interleave": 6, "sequence": True},
        "optimizer": {"name": "adamw", "lr": 0.0001},
        "data": {"path": "/data/pile", "sequenceLength": 2048, "microBatch": 1, "globalBatch": 6144},
    }
}


def made(**spec: Any) -> World:
    world = World(job_object(**spec))
    world.nodes = {f"n{number}": node_object(f"n{number}") for number in range(1, 6)}
    world.settle()
    return world


def slot(**spec: Any) -> Obj:
    return made(**spec).pods["q-0-0"]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"health": {"checkSlots": True}},
        {"scheduling": {"gang": "kueue", "queue": "team"}},
        {
            "template": {
                "spec": {
                    "hostNetwork": True,
                    "runtimeClassName": "nvidia",
                    "imagePullSecrets": [{"name": "r"}],
                }
            }
        },
    ],
)
def test_every_object_is_accepted_by_the_strict_schema(spec: dict[str, Any]) -> None:
    world = made(**spec)
    for (kind, _), owned_object in world.owned.items():
        version = "rbac.authorization.k8s.io/v1" if kind.startswith("Role") else "v1"
        kubernetes_validate.validate(
            {"apiVersion": version, "kind": kind, **owned_object}, "1.33", strict=True
        )
    for pod in world.pods.values():
        bare = {key: value for key, value in pod.items() if key != "status"}
        kubernetes_validate.validate(bare, "1.33", strict=True)


def test_containers_are_restricted() -> None:
    world = made(health={"checkSlots": True})
    for pod in world.pods.values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_slots_have_no_api_access_and_a_token_for_their_driver_only() -> None:
    pod = slot()
    assert pod["spec"]["automountServiceAccountToken"] is False
    token = next(one for one in pod["spec"]["volumes"] if one["name"] == "megascale-token")
    assert token["projected"]["sources"] == [
        {
            "serviceAccountToken": {
                "path": "token",
                "audience": "megascale/team/uid-job",
                "expirationSeconds": 3600,
            }
        }
    ]
    assert "q-slot" not in str(made().owned["RoleBinding", "q-driver"]["subjects"])


def test_silent_nodes_are_tolerated_without_limit() -> None:
    tolerations = slot()["spec"]["tolerations"]
    assert {one["key"] for one in tolerations if "tolerationSeconds" not in one} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }


def test_slots_of_a_job_never_share_a_node() -> None:
    terms = slot()["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms == [
        {
            "labelSelector": {"matchLabels": {names.JOB: "q", names.ROLE: "slot"}},
            "topologyKey": "kubernetes.io/hostname",
        }
    ]


def test_topology_keys_become_preferences_the_narrowest_the_strongest() -> None:
    pod = slot(scheduling={"topologyKeys": ["zone", "block"]})
    terms = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [(one["podAffinityTerm"]["topologyKey"], one["weight"]) for one in terms] == [
        ("zone", 10),
        ("block", 20),
    ]


def test_excluded_nodes_are_excluded_from_every_alternative_of_the_template() -> None:
    terms = [{"matchExpressions": [{"key": key, "operator": "Exists"}]} for key in ("a", "b")]
    required = {"nodeSelectorTerms": terms}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    world = World(job_object(template={"spec": {"affinity": affinity}}))
    world.driver_reports(requests={"slots": 3, "avoidNodes": ["n7", "n8"]})
    world.tick()
    pod = world.pods["q-0-0"]
    assert avoided(pod) == {"n7", "n8"}
    found = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert all(
        len(term["matchFields"]) == 2 and term["matchExpressions"] for term in found["nodeSelectorTerms"]
    )
    assert all(
        len(field["values"]) == 1 for term in found["nodeSelectorTerms"] for field in term["matchFields"]
    )


def test_the_template_applies_to_slots_and_in_part_to_the_driver() -> None:
    template = {
        "metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}},
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "priorityClassName": "high",
            "volumes": [
                {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
                {"name": "data", "hostPath": {"path": "/data"}},
            ],
            "containers": [
                {
                    "name": "slot",
                    "image": "mine:2",
                    "resources": {"limits": {"nvidia.com/gpu": 8}},
                    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
                    "volumeMounts": [
                        {"name": "store", "mountPath": "/store"},
                        {"name": "data", "mountPath": "/data"},
                    ],
                },
                {"name": "driver", "volumeMounts": [{"name": "store", "mountPath": "/store"}]},
            ],
        },
    }
    world = made(template=template)
    pod, driver = world.pods["q-0-0"], world.pods["q-driver-0"]
    container = pod["spec"]["containers"][0]
    assert container["image"] == "mine:2"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
    assert pod["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert {"key": "gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
    assert pod["metadata"]["labels"]["team"] == driver["metadata"]["labels"]["team"] == "x"
    assert driver["spec"]["containers"][0]["image"] == "image:1"
    assert "nodeSelector" not in driver["spec"]
    assert driver["spec"]["priorityClassName"] == "high"
    volumes = {one["name"] for one in driver["spec"]["volumes"]}
    assert "store" in volumes
    assert "data" not in volumes


def test_the_check_runs_on_the_devices_of_the_slot() -> None:
    limits = {"limits": {"nvidia.com/gpu": 8}}
    template = {"spec": {"containers": [{"name": "slot", "resources": limits}]}}
    check = slot(health={"checkSlots": True}, template=template)["spec"]["initContainers"][0]
    assert check["resources"] == limits
    assert check["args"][:3] == ["--light", "--local", "--json"]
    assert "initContainers" not in slot(health={"checkSlots": False})["spec"]


def test_kueue_gets_a_pod_group_of_all_slots() -> None:
    world = made(scheduling={"gang": "kueue", "queue": "team"})
    for pod in world.slots():
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "q"
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "3"
    assert "kueue.x-k8s.io/queue-name" not in world.pods["q-driver-0"]["metadata"]["labels"]
    assert "kueue.x-k8s.io/queue-name" not in slot()["metadata"]["labels"]


def test_rights_name_their_objects_and_hold_no_wildcard() -> None:
    rules = made().owned["Role", "q-driver"]["rules"]
    assert all(one["resourceNames"] and "*" not in str(one) for one in rules)
    assert {(one["resources"][0], verb) for one in rules for verb in one["verbs"]} == {
        ("trainingjobs", "get"), ("trainingjobs", "watch"),
        ("trainingjobs/status", "get"), ("trainingjobs/status", "patch"),
        ("configmaps", "get"), ("configmaps", "watch"), ("configmaps", "update"),
    }  # fmt: skip
    updates = [one["resourceNames"] for one in rules if "update" in one["verbs"]]
    assert updates == [["q-driver", "q-record"]]


def test_memory_for_snapshots_follows_from_the_model() -> None:
    spec = {"nodes": 192, "ranksPerNode": 8, "minNodes": 96, "runtime": MODEL}
    obj = job_object(**spec)
    job = Job(obj, from_mapping(obj))
    mebibytes = snapshot_mebibytes(job.spec)
    # 175e9 parameters x 12 bytes over 96 nodes; own and neighbour's state in two buffers each; 25% slack.
    assert mebibytes is not None
    assert mebibytes == pytest.approx(175e9 * 12 / 96 * 4 * 1.25 / 2**20, rel=0.15)
    memory = next(one for one in slot(**spec)["spec"]["volumes"] if one["name"] == "megascale-memory")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": f"{mebibytes}Mi"}


def test_a_script_of_the_user_has_snapshots_of_unknown_size() -> None:
    memory = next(one for one in slot()["spec"]["volumes"] if one["name"] == "megascale-memory")
    assert memory["emptyDir"] == {"medium": "Memory"}
