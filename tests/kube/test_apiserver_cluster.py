"""The double's controllers: scheduling, eviction, node life cycle, custom resources."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from objects import eventually, fresh, pod, refusal
from rest import Rest

Json = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"
HOSTNAME = "kubernetes.io/hostname"


def add_node(api: Rest, group: str, name: str, **spec: Any) -> None:
    labels = {HOSTNAME: name, "group": group}
    status = {
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "10"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
    }
    api.create(
        "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}
    )
    eventually(lambda: "taints" not in api.get(f"/api/v1/nodes/{name}")["spec"] or None)


def place(api: Rest, group: str, name: str = "", **spec: Any) -> Json:
    labels = {"app": group}
    body = pod(name or fresh("pod"), nodeSelector={"group": group}, **spec)
    body["metadata"]["labels"] = labels
    return api.create(PODS, body)


def scheduled(api: Rest, made: Json) -> Json:
    """Wait until the scheduler has set a condition on the pod; return it."""

    def look() -> Json | None:
        found = api.get(f"{PODS}/{made['metadata']['name']}")
        return found if found["status"].get("conditions") else None

    return eventually(look)


def message(found: Json) -> str:
    return str(found["status"]["conditions"][0].get("message", ""))


def test_one_slot_a_node_by_anti_affinity_and_a_new_node_takes_the_next(api: Rest) -> None:
    group = fresh("group")
    for n in range(2):
        add_node(api, group, f"{group}-{n}")
    term = {"labelSelector": {"matchLabels": {"app": group}}, "topologyKey": HOSTNAME}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    made = [scheduled(api, place(api, group, affinity=affinity)) for _ in range(3)]
    assert len({one["spec"]["nodeName"] for one in made[:2]}) == 2
    assert "nodeName" not in made[2]["spec"]
    assert "2 node(s) didn't match pod anti-affinity rules" in message(made[2])
    add_node(api, group, f"{group}-2")
    bound = eventually(lambda: api.get(f"{PODS}/{made[2]['metadata']['name']}")["spec"].get("nodeName"))
    assert bound == f"{group}-2"


def test_taints_cordons_resources_and_required_affinity_are_respected(api: Rest) -> None:
    group = fresh("group")
    add_node(api, group, f"{group}-a")
    api.merge(f"/api/v1/nodes/{group}-a", {"spec": {"unschedulable": True}})
    cordoned = scheduled(api, place(api, group))
    assert "unschedulable" in message(cordoned)
    taints = eventually(lambda: api.get(f"/api/v1/nodes/{group}-a")["spec"].get("taints"))
    assert [one["key"] for one in taints] == ["node.kubernetes.io/unschedulable"]
    api.merge(f"/api/v1/nodes/{group}-a", {"spec": {"unschedulable": None}})
    eventually(lambda: api.get(f"{PODS}/{cordoned['metadata']['name']}")["spec"].get("nodeName"))
    large = [{"name": "main", "image": "x:1", "resources": {"requests": {"cpu": "5"}}}]
    assert "Insufficient cpu" in message(scheduled(api, place(api, group, containers=large)))
    avoid = {"matchExpressions": [{"key": HOSTNAME, "operator": "NotIn", "values": [f"{group}-a"]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [avoid]}}
    }
    assert "node affinity/selector" in message(scheduled(api, place(api, group, affinity=affinity)))


def test_gated_pods_wait(api: Rest) -> None:
    group = fresh("group")
    add_node(api, group, f"{group}-a")
    gated = scheduled(api, place(api, group, schedulingGates=[{"name": "kueue.x-k8s.io/admission"}]))
    assert gated["status"]["conditions"][0]["reason"] == "SchedulingGated"
    path = f"{PODS}/{gated['metadata']['name']}"
    api.json_patch(path, [{"op": "remove", "path": "/spec/schedulingGates"}])
    assert eventually(lambda: api.get(path)["spec"].get("nodeName")) == f"{group}-a"


def test_eviction_marks_the_pod_and_budgets_forbid_it(api: Rest) -> None:
    group = fresh("group")
    add_node(api, group, f"{group}-a")
    path = f"{PODS}/{scheduled(api, place(api, group))['metadata']['name']}"
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": group}}}
    api.create(budgets, {"metadata": {"name": group}, "spec": spec})
    refused = refusal(
        lambda: api.create(f"{path}/eviction", {"metadata": {"name": path.rsplit("/", maxsplit=1)[-1]}})
    )
    assert (refused.code, "disruption budget" in str(refused)) == (429, True)
    api.delete(f"{budgets}/{group}")
    api.create(f"{path}/eviction", {"metadata": {"name": path.rsplit("/", maxsplit=1)[-1]}})
    left = api.get(path)
    marks = {one["type"]: one.get("reason") for one in left["status"]["conditions"]}
    assert marks["DisruptionTarget"] == "EvictionByEvictionAPI"
    assert left["metadata"]["deletionGracePeriodSeconds"] == 30


def crd(plural: str, kind: str) -> Json:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer", "default": 3, "maximum": 10}},
            },
            "status": {"type": "object", "properties": {"state": {"type": "string"}}},
        },
    }
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}}
    version |= {"schema": {"openAPIV3Schema": schema}}
    version |= {
        "additionalPrinterColumns": [{"name": "State", "type": "string", "jsonPath": ".status.state"}]
    }
    names = {"plural": plural, "kind": kind, "singular": kind.lower()}
    spec = {"group": "demo.io", "scope": "Namespaced", "names": names, "versions": [version]}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    return body | {"metadata": {"name": f"{plural}.demo.io"}, "spec": spec}


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def test_a_custom_resource_from_definition_to_removal(api: Rest) -> None:
    made = api.create(CRDS, crd("widgets", "Widget"))
    assert api.get(f"{CRDS}/widgets.demo.io")["status"]["conditions"][-1]["type"] == "Established"
    path = "/apis/demo.io/v1/namespaces/default/widgets"
    widget = {"apiVersion": "demo.io/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"other": 1}}
    assert refusal(lambda: api.create(path, widget, fieldValidation="Strict")).code == 400
    first = api.create(path, widget | {"status": {"state": "set by the creator"}})
    assert (first["spec"], first.get("status"), first["metadata"]["generation"]) == ({"size": 3}, None, 1)
    status = api.merge(f"{path}/w/status", {"spec": {"size": 4}, "status": {"state": "Good"}})
    assert (status["spec"], status["status"]) == ({"size": 3}, {"state": "Good"})
    spec = api.merge(f"{path}/w", {"spec": {"size": 5}, "status": {"state": "Bad"}})
    assert (spec["status"]["state"], spec["metadata"]["generation"]) == ("Good", 2)
    api.merge(f"{path}/w", {"metadata": {"finalizers": ["demo.io/hold"]}})
    api.delete(f"{CRDS}/{made['metadata']['name']}")
    assert api.get(f"{path}/w")["metadata"]["deletionTimestamp"]
    api.merge(f"{path}/w", {"metadata": {"finalizers": None}})
    assert refusal(lambda: api.get(f"{CRDS}/{made['metadata']['name']}")).code == 404
    assert refusal(lambda: api.get(path)).code == 404


@pytest.fixture
def kubectl(kubeconfig: Path, tmp_path: Path) -> Callable[..., str]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed: its requests to the API server are not tested")

    def run(*arguments: str, text: str = "") -> str:
        command = [program, "--kubeconfig", str(kubeconfig), "--cache-dir", str(tmp_path), *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


MANIFEST = """\
apiVersion: demo.io/v1
kind: Gadget
metadata: {name: g}
spec: {size: 4}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: by-kubectl}
data: {a: "1"}
"""


def test_kubectl_works(api: Rest, kubectl: Callable[..., str]) -> None:
    api.create(CRDS, crd("gadgets", "Gadget"))
    assert kubectl("apply", "-f", "-", text=MANIFEST).splitlines() == [
        "gadget.demo.io/g created",
        "configmap/by-kubectl created",
    ]
    again = kubectl("apply", "-f", "-", text=MANIFEST.replace("size: 4", "size: 5").replace("{a:", "{b:"))
    assert again.splitlines() == ["gadget.demo.io/g configured", "configmap/by-kubectl configured"]
    assert kubectl("get", "cm", "by-kubectl", "-o", "jsonpath={.data}") == '{"b":"1"}'
    kubectl(
        "patch", "gadget", "g", "--subresource=status", "--type=merge", "-p", '{"status":{"state":"Good"}}'
    )
    assert kubectl("get", "gadgets").split() == ["NAME", "STATE", "g", "Good"]
    assert "size\t<integer>" in kubectl("explain", "gadget.spec")
    kubectl("annotate", "gadget", "g", "demo.io/x=y")
    applied = kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=MANIFEST)
    assert "gadget.demo.io/g serverside-applied" in applied
    assert kubectl("delete", "gadget", "g", "--timeout=10s") == 'gadget.demo.io "g" deleted\n'
