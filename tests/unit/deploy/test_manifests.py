"""deploy/: what is applied is valid, restricted, and grants no more than it must."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kube_world import job_object
from megascale_operator.reconcile.driver_pod import driver_pod
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.names import CA_SECRET, OPERATOR
from megascale_operator.reconcile.rbac import _rules as driver_rules

from megascale.job import from_mapping

ROOT = Path(__file__).parents[3]
BUILDS = ("base", "overlays/dev", "overlays/production", "overlays/monitoring", "job-namespace")
OVERLAYS = BUILDS[1:4]
Json = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def built(folder: str) -> tuple[Json, ...]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "deploy" / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


def container_ports(pod: Json) -> list[Json]:
    return pod["spec"]["containers"][0]["ports"]


def kinds(folder: str, kind: str) -> dict[str, Json]:
    return {doc["metadata"]["name"]: doc for doc in built(folder) if doc["kind"] == kind}


def with_component(folder: Path, name: str) -> tuple[Json, ...]:
    """Production with one of the components."""
    up = Path("/".join([".."] * len(folder.parts[1:]))) / str(ROOT)[1:] / "deploy"
    lines = ["kind: Kustomization", "resources:", f"- {up}/overlays/production", "components:"]
    (folder / "kustomization.yaml").write_text("\n".join([*lines, f"- {up}/components/{name}"]))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("folder", BUILDS)
def test_objects_are_what_kubernetes_knows(folder: str) -> None:
    for document in built(folder):
        if document["kind"] != "PodMonitor":
            kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_there_is_no_wildcard_and_no_way_up(folder: str) -> None:
    rules = [r for doc in built(folder) if doc["kind"] in {"Role", "ClusterRole"} for r in doc["rules"]]
    assert len(rules) > 10
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"bind", "escalate", "impersonate"} & set(rule["verbs"])


@pytest.mark.parametrize("folder", OVERLAYS)
def test_secrets_are_closed_but_for_the_ca(folder: str) -> None:
    assert not any("secrets" in r["resources"] for r in kinds(folder, "ClusterRole")[OPERATOR]["rules"])
    rules = [r for r in kinds(folder, "Role")[OPERATOR]["rules"] if "secrets" in r["resources"]]
    named, unnamed = (
        [r for r in rules if bool(r.get("resourceNames")) is is_named] for is_named in (True, False)
    )
    assert [(r["resourceNames"], r["verbs"]) for r in named] == [([CA_SECRET], ["get", "update"])]
    assert [r["verbs"] for r in unnamed] == [["create"]]


def test_the_operator_holds_what_it_grants_to_drivers() -> None:
    """The API server lets nobody grant rights that they lack."""
    held = {
        (group, resource, verb)
        for rule in kinds("base", "ClusterRole")[OPERATOR]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    granted = {
        (group, resource, verb)
        for rule in driver_rules("job")
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted
    assert granted <= held


def writes_to_nodes(documents: tuple[Json, ...]) -> set[str]:
    reading = {"get", "list", "watch"}
    return {
        verb
        for doc in documents
        if doc["kind"] == "ClusterRole"
        for rule in doc["rules"]
        if "nodes" in rule["resources"]
        for verb in set(rule["verbs"]) - reading
    }


@pytest.mark.parametrize("folder", OVERLAYS)
def test_nodes_are_only_watched_unless_asked_for(folder: str) -> None:
    assert writes_to_nodes(built(folder)) == set()
    assert environment(deployment(built(folder)))["MODE"]["value"] == "Observe"


@pytest.mark.parametrize(("component", "mode"), [("annotate", "Annotate"), ("enforce", "Enforce")])
def test_components_let_the_operator_act(component: str, mode: str, tmp_path: Path) -> None:
    documents = with_component(tmp_path, component)
    assert writes_to_nodes(documents) == {"patch"}
    assert environment(deployment(documents))["MODE"]["value"] == mode


def deployment(documents: tuple[Json, ...]) -> Json:
    (found,) = (doc for doc in documents if doc["kind"] == "Deployment")
    return found


def container(document: Json) -> Json:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    return found


def environment(document: Json) -> dict[str, Json]:
    return {variable["name"]: variable for variable in container(document)["env"]}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_operator_is_restricted(folder: str) -> None:
    document = deployment(built(folder))
    pod, own = document["spec"]["template"]["spec"], container(document)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert "hostNetwork" not in pod
    assert {"requests", "limits"} == set(own["resources"])
    namespace = kinds(folder, "Namespace")["megascale-system"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_one_image_for_the_operator_and_for_jobs(folder: str) -> None:
    document = deployment(built(folder))
    assert environment(document)["IMAGE"]["value"] == container(document)["image"]
    used = set(re.findall(r"\$\((\w+)\)", " ".join(container(document)["args"])))
    assert used <= set(environment(document))


def test_dev_has_one_replica_and_production_keeps_one_of_two() -> None:
    assert deployment(built("overlays/dev"))["spec"]["replicas"] == 1
    assert kinds("overlays/dev", "PodDisruptionBudget") == {}
    assert deployment(built("overlays/production"))["spec"]["replicas"] == 2
    (budget,) = kinds("overlays/production", "PodDisruptionBudget").values()
    assert budget["spec"]["selector"] == deployment(built("overlays/production"))["spec"]["selector"]


@pytest.mark.parametrize("folder", [*OVERLAYS, "job-namespace"])
def test_nothing_is_open_by_default(folder: str) -> None:
    closed = [
        p["spec"] for name, p in kinds(folder, "NetworkPolicy").items() if name.endswith("default-deny")
    ]
    assert len(closed) == 1
    assert set(closed[0]) == {"podSelector", "policyTypes"}
    assert set(closed[0]["policyTypes"]) == {"Ingress", "Egress"}


def test_monitors_find_the_pods() -> None:
    monitors = kinds("overlays/monitoring", "PodMonitor")
    labels = deployment(built("overlays/monitoring"))["spec"]["template"]["metadata"]["labels"]
    selector = monitors["megascale-operator"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    ports = {port["name"] for port in container(deployment(built("overlays/monitoring")))["ports"]}
    assert {e["port"] for e in monitors["megascale-operator"]["spec"]["podMetricsEndpoints"]} <= ports
    drivers = monitors["megascale-drivers"]["spec"]
    assert drivers["namespaceSelector"] == {"any": True}
    obj = job_object("q")
    manifest = from_mapping({key: value for key, value in obj.items() if key != "status"})
    pod = driver_pod(Job(obj, manifest), 0, "image")
    assert drivers["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {e["port"] for e in drivers["podMetricsEndpoints"]} <= {p["name"] for p in container_ports(pod)}


def test_the_image_is_built_in_stages_and_runs_as_nobody() -> None:
    lines = (ROOT / "operator" / "Dockerfile").read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["65532:65532"]
    assert users[0].split(":")[0] == str(
        deployment(built("base"))["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    )
    copied = [
        part
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for part in line.split()[1:-1]
    ]
    ignored = (ROOT / "operator" / "Dockerfile.dockerignore").read_text().splitlines()
    for part in copied:
        assert (ROOT / part).exists()
        assert f"!{part}" in ignored
