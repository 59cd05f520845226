"""Process nodes against the API server double: the containers' environment, and failing nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from kubelet.control import Control
from objects import config_map, eventually, fresh
from programs import api_server, kubelet
from rest import Cluster, Refused, Rest

pytestmark = pytest.mark.multiprocess
Json = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


@dataclass
class Nodes:
    """A running cluster of three nodes."""

    api: Rest
    control: Control
    folder: Path

    def run(self, *containers: Json, name: str = "", **spec: Any) -> Json:
        body = {"metadata": {"name": name or fresh("pod")}, "spec": {"containers": list(containers)} | spec}
        body["spec"] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5} | body["spec"]
        return self.api.create(PODS, body)

    def until(self, pod: Json, holds: Callable[[Json], Any], timeout_s: float = 20.0) -> Json:
        """Wait for and return the first state of a pod for which `holds`; {} stands for a deleted pod."""
        name, end = pod["metadata"]["name"], time.monotonic() + timeout_s
        seen = self.api.get(PODS, fieldSelector=f"metadata.name={name}")
        latest = seen["items"][0] if seen["items"] else {}
        version = seen["metadata"]["resourceVersion"]
        if holds(latest):
            return latest
        query = {"fieldSelector": f"metadata.name={name}", "timeoutSeconds": int(timeout_s)}
        with self.api.watch(PODS, resourceVersion=version, **query) as events:
            for event in events:
                latest = {} if event["type"] == "DELETED" else event["object"]
                if holds(latest):
                    return latest
                assert time.monotonic() < end
        raise AssertionError(f"not reached within {timeout_s} s: {latest.get('status')}")

    def over(self, pod: Json) -> Json:
        return self.until(pod, lambda one: one.get("status", {}).get("phase") in {"Succeeded", "Failed"})

    def pid(self, pod: Json, container: str = "main") -> int:
        """Return the process id of a container's process 1."""
        pods = {name: one for node in self.control.state().values() for name, one in node["pods"].items()}
        return int(pods[pod["metadata"]["name"]]["pids"][container])

    def log(self, pod: Json, container: str = "main", run: int = 0) -> str:
        return (self.folder / "logs" / f"default_{pod['metadata']['name']}_{container}_{run}.log").read_text()


def python(code: str, name: str = "main", **rest: Any) -> Json:
    return {"name": name, "image": "none:1", "command": ["python", "-c", code]} | rest


def shell(code: str, name: str = "main", **rest: Any) -> Json:
    return {"name": name, "image": "none:1", "command": ["sh", "-c", code]} | rest


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("cluster")
    options = ("--node-grace-seconds", "1.5", "--orphan-grace-seconds", "0.5", "--bookmark-seconds", "1")
    with api_server(folder, *options):
        timing = ("--lease-seconds", "0.4", "--backoff-seconds", "0.3")
        program, url = kubelet(folder / "nodes", folder / "kubeconfig", "--nodes", "3", *timing)
        with program:
            yield Nodes(Rest(Cluster.of(folder / "kubeconfig")), Control(url), folder / "nodes")


def test_a_pod_runs_and_its_exit_codes_are_reported(nodes: Nodes) -> None:
    good = nodes.over(nodes.run(python("print('hello')")))
    bad = nodes.over(nodes.run(shell("echo why >/dev/termination-log; exit 3")))
    killed = nodes.run(shell("sleep 100"))
    nodes.until(killed, lambda one: one["status"].get("phase") == "Running")
    os.kill(nodes.pid(killed), signal.SIGKILL)
    killed = nodes.over(killed)
    assert (good["status"]["phase"], nodes.log(good)) == ("Succeeded", "hello\n")
    ended = bad["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (bad["status"]["phase"], ended["exitCode"], ended["message"]) == ("Failed", 3, "why\n")
    conditions = {one["type"]: one["status"] for one in good["status"]["conditions"]}
    assert conditions["PodScheduled"] == "True"
    assert conditions["Ready"] == "False"
    assert killed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_what_a_container_sees(nodes: Nodes) -> None:
    name = fresh("seen")
    nodes.api.create(CONFIGMAPS, config_map(name, text="from a map"))
    env = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "BOTH", "value": "$(POD_NAME)@$(NODE)"},
        {"name": "TEXT", "valueFrom": {"configMapKeyRef": {"name": name, "key": "text"}}},
    ]
    mounts = [{"name": "map", "mountPath": "/run/megascale/job"}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [
        {"name": "map", "configMap": {"name": name}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    code = "echo $0; cat /run/megascale/job/text; echo; echo $TEXT; "
    code += "df --output=fstype /dev/shm | tail -1; echo $$$$"
    script = shell(code, args=["$(BOTH) $(POD_IP) $(NOT_SET)"], env=env, volumeMounts=mounts)
    pod = nodes.over(nodes.run(script, volumes=volumes))
    where = f"{pod['metadata']['name']}@{pod['spec']['nodeName']}"
    address = pod["status"]["podIP"]
    assert nodes.log(pod).splitlines() == [
        f"{where} {address} $(NOT_SET)",
        "from a map",
        "from a map",
        "tmpfs",
        "1",
    ]
    assert address.startswith("127.")
    assert address != pod["status"]["hostIP"]


def test_a_read_only_root_leaves_the_volumes_writable(nodes: Nodes) -> None:
    mounts = [{"name": "work", "mountPath": "/run/megascale/work"}, {"name": "tmp", "mountPath": "/tmp"}]
    volumes = [{"name": "work", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    code = "touch x /tmp/x /dev/shm/x && pwd; touch /run/x || touch /mnt/x || touch /etc/x || echo refused"
    strict = {"securityContext": {"readOnlyRootFilesystem": True}, "workingDir": "/run/megascale/work"}
    pod = nodes.over(nodes.run(shell(code, volumeMounts=mounts, **strict), volumes=volumes))
    lines = [one for one in nodes.log(pod).splitlines() if not one.startswith("touch:")]
    assert lines == ["/run/megascale/work", "refused"]


def test_init_containers_come_first_and_share_volumes(nodes: Nodes) -> None:
    mounts = [{"name": "work", "mountPath": "/run/megascale/work"}]
    first = shell("sleep 0.2; echo made >/run/megascale/work/x", "first", volumeMounts=mounts)
    main = shell("cat /run/megascale/work/x", volumeMounts=mounts)
    volumes = [{"name": "work", "emptyDir": {}}]
    pod = nodes.over(nodes.run(main, initContainers=[first], volumes=volumes))
    assert nodes.log(pod) == "made\n"
    failing = nodes.over(nodes.run(main, initContainers=[shell("exit 4", "first")], volumes=volumes))
    status = failing["status"]
    assert (status["phase"], status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"]) == (
        "Failed",
        4,
    )
    assert "waiting" in status["containerStatuses"][0]["state"]


def test_restarts_with_back_off_and_memory_volumes_that_survive(nodes: Nodes) -> None:
    mounts = [{"name": "memory", "mountPath": "/run/megascale/memory"}]
    code = "echo x >>/run/megascale/memory/runs; [ $(wc -l </run/megascale/memory/runs) -ge 3 ] || exit 75"
    volumes = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    pod = nodes.run(shell(code, volumeMounts=mounts), volumes=volumes, restartPolicy="OnFailure")
    nodes.until(pod, lambda one: "CrashLoopBackOff" in str(one["status"].get("containerStatuses")))
    ended = nodes.over(pod)["status"]
    assert (ended["phase"], ended["containerStatuses"][0]["restartCount"]) == ("Succeeded", 2)
    assert ended["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 75


def test_deletion_sends_sigterm_and_waits_for_the_grace_period(nodes: Nodes) -> None:
    polite = nodes.run(shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"))
    stubborn = nodes.run(shell("trap '' TERM; while :; do sleep 0.1; done"), terminationGracePeriodSeconds=1)
    for pod in (polite, stubborn):
        nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    nodes.api.delete(f"{PODS}/{polite['metadata']['name']}")
    marked = nodes.api.delete(f"{PODS}/{stubborn['metadata']['name']}")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 1
    for pod in (polite, stubborn):
        nodes.until(pod, lambda one: not one)
    assert "bye" in nodes.log(polite)


def test_a_changed_config_map_reaches_a_running_pod(nodes: Nodes) -> None:
    name = fresh("live")
    mounts = [{"name": "map", "mountPath": "/run/megascale/driver"}]
    volumes = [{"name": "map", "configMap": {"name": name, "optional": True}}]
    code = "until grep -q second /run/megascale/driver/text 2>/dev/null; do sleep 0.05; done; echo seen"
    pod = nodes.run(shell(code, volumeMounts=mounts), volumes=volumes)
    nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    nodes.api.create(CONFIGMAPS, config_map(name, text="first"))
    nodes.api.merge(f"{CONFIGMAPS}/{name}", {"data": {"text": "second"}})
    assert nodes.over(pod)["status"]["phase"] == "Succeeded"


def test_a_projected_token_is_bound_to_the_pod_and_ends_with_it(nodes: Nodes) -> None:
    token = {"path": "token", "audience": "megascale/default/u", "expirationSeconds": 3600}
    volumes = [{"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}]
    mounts = [{"name": "token", "mountPath": "/run/megascale/token"}]
    code = "cat /run/megascale/token/token; echo; "
    code += "cat /var/run/secrets/kubernetes.io/serviceaccount/token; sleep 60"
    pod = nodes.run(shell(code, volumeMounts=mounts), volumes=volumes)
    nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    own, default = _lines(nodes, pod, 2)
    keys = jwt.PyJWKSet.from_dict(nodes.api.get("/openid/v1/jwks"))
    claims = jwt.decode(own, keys.keys[0].key, ["RS256"], audience="megascale/default/u")
    assert claims["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]
    assert claims["sub"] == "system:serviceaccount:default:default"
    cluster = nodes.api.cluster
    with pytest.raises(Refused, match="401"):
        Rest(Cluster(cluster.url, cluster.ca_pem, own)).get("/api/v1/nodes")
    with pytest.raises(Refused, match='cannot list resource "nodes" in API group "" at the cluster scope'):
        Rest(Cluster(cluster.url, cluster.ca_pem, default)).get("/api/v1/nodes")
    nodes.api.delete(f"{PODS}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
    with pytest.raises(Refused, match="401"):
        Rest(Cluster(cluster.url, cluster.ca_pem, default)).get("/api/v1/nodes")


def _lines(nodes: Nodes, pod: Json, count: int) -> list[str]:
    return eventually(lambda: lines if len(lines := nodes.log(pod).split()) >= count else None)


def test_a_stopped_node_becomes_unreachable_and_evicts(nodes: Nodes) -> None:
    selector = {"kubernetes.io/hostname": "node-2"}
    tolerations = [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}]
    staying = nodes.run(shell("sleep 100"), nodeSelector=selector, tolerations=tolerations)
    short = [tolerations[0] | {"tolerationSeconds": 0}]
    leaving = nodes.run(shell("sleep 100"), nodeSelector=selector, tolerations=short)
    for pod in (staying, leaving):
        nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    nodes.control.act("node-2", "stop")
    gone = nodes.until(leaving, lambda one: one["metadata"].get("deletionTimestamp"))
    assert "DeletionByTaintManager" in str(gone["status"]["conditions"])
    unready = nodes.until(staying, lambda one: _condition(one, "Ready") == "False")
    assert "deletionTimestamp" not in unready["metadata"]
    node = nodes.api.get("/api/v1/nodes/node-2")
    assert {one["key"] for one in node["spec"]["taints"]} == {"node.kubernetes.io/unreachable"}
    nodes.control.act("node-2", "start")
    nodes.until(leaving, lambda one: not one)
    back = nodes.until(staying, lambda one: one["status"]["phase"] == "Failed")
    assert back["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def _condition(pod: Json, kind: str) -> str:
    return next((one["status"] for one in pod["status"].get("conditions", ()) if one["type"] == kind), "")


def test_a_frozen_node_resumes_its_pods(nodes: Nodes) -> None:
    selector = {"kubernetes.io/hostname": "node-3"}
    tolerations = [{"operator": "Exists"}]
    pod = nodes.run(shell("sleep 1; echo done"), nodeSelector=selector, tolerations=tolerations)
    nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    nodes.control.act("node-3", "freeze")
    nodes.until(pod, lambda one: _condition(one, "Ready") == "False")
    nodes.control.act("node-3", "thaw")
    assert nodes.over(pod)["status"]["phase"] == "Succeeded"


def test_pods_of_a_removed_node_are_collected(nodes: Nodes) -> None:
    pod = nodes.run(shell("sleep 100"), nodeSelector={"kubernetes.io/hostname": "node-1"})
    nodes.until(pod, lambda one: one["status"].get("phase") == "Running")
    nodes.control.act("node-1", "remove")
    nodes.until(pod, lambda one: "DeletionByPodGC" in str(one["status"]["conditions"]))
    nodes.until(pod, lambda one: not one)
    with pytest.raises(Refused, match="404"):
        nodes.api.get("/api/v1/nodes/node-1")
