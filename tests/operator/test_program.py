"""The operator as a process against an API server: certificates, quarantine, checks, deletion, probes.

Leadership is tested in tests/kube/e2e/test_leadership.py.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kube_world import job_object
from megascale_operator.reconcile import names
from objects import fresh
from programs import Program
from rest import Cluster, Refused, Rest

CRDS = Path(__file__).parents[2] / "operator" / "crds"
JOBS = "/apis/megascale.io/v1alpha1/namespaces/default/trainingjobs"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/megascale-system/leases/megascale-operator"
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture(scope="module")
def api(kubeconfig: Path) -> Rest:
    """An administrator's client of a server with the CRDs and five nodes."""
    rest = Rest(Cluster.of(kubeconfig))
    for path in sorted(CRDS.glob("*.yaml")):
        rest.create(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(path.read_text())
        )
    meta = {"name": "megascale-system"}
    rest.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    for number in range(5):
        add_node(rest, f"n{number}")
    return rest


def add_node(api: Rest, name: str) -> None:
    room = {"cpu": "64", "memory": "256Gi", "pods": "110"}
    status = {"conditions": [{"type": "Ready", "status": "True"}], "capacity": room, "allocatable": room}
    meta = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": status})


@contextmanager
def operator(kubeconfig: Path, name: str, *arguments: str) -> Iterator[Program]:
    program = Program(
        "megascale_operator",
        ["--kubeconfig", str(kubeconfig), "--image", "none:1", "--identity", name, "--metrics-port", "0",
         "--health-port", "0", *arguments],
        kubeconfig.parent / f"{name}.log",
    )  # fmt: skip
    program.start()
    try:
        yield program
    finally:
        program.stop()


def eventually(what: str, look: Any, timeout_s: float = 30.0) -> Any:
    """Poll `look` until its result is true; the API server has no request that waits for a condition."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            found = look()
        except KeyError:
            found = None
        except Refused as refused:
            found = None
            if refused.code != 404:
                raise
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def holder(api: Rest) -> str:
    return str(api.get(LEASE)["spec"].get("holderIdentity") or "")


def led_by(api: Rest, name: str) -> float:
    """Wait until `name` leads; return the seconds it took."""
    start = time.monotonic()
    eventually(f"{name} leads", lambda: holder(api) == name)
    return time.monotonic() - start


def new_job(api: Rest, **spec: Any) -> str:
    name = fresh("job")
    body = job_object(name, **spec)
    body["metadata"] = {"name": name}
    api.create(JOBS, body)
    return name


def pods_of(api: Rest, job: str) -> list[str]:
    found = api.get("/api/v1/namespaces/default/pods", labelSelector=f"{names.JOB}={job}")["items"]
    return sorted(one["metadata"]["name"] for one in found)


def all_made(api: Rest, job: str) -> list[str]:
    wanted = [f"{job}-0-0", f"{job}-1-0", f"{job}-2-0", f"{job}-driver-0"]
    return eventually(f"pods of {job}", lambda: pods_of(api, job) == wanted and wanted)


def test_an_api_server_that_hangs_costs_leadership_and_nothing_else(
    kubeconfig: Path, api: Rest, server: Program
) -> None:
    with operator(kubeconfig, "patient") as program:
        led_by(api, "patient")
        job = new_job(api)
        all_made(api, job)
        server.signal(signal.SIGSTOP)
        time.sleep(12)
        server.signal(signal.SIGCONT)
        assert program.process is not None
        assert program.process.poll() is None
        eventually("it leads again", lambda: holder(api) == "patient")
        api.delete(f"/api/v1/namespaces/default/pods/{job}-0-0")
        eventually("it writes again", lambda: f"{job}-0-1" in pods_of(api, job))
        assert "is no longer the leader" in program.log.read_text()


def test_jobs_get_the_detection_thresholds_of_the_cluster(kubeconfig: Path, api: Rest) -> None:
    values = "{shadow: [straggler], hang: {steps: 5, marginSeconds: 30}}"
    with operator(kubeconfig, "watchful", "--detection-defaults", values):
        led_by(api, "watchful")
        job = new_job(api, detection={"hang": {"steps": 7}})
        path = f"/api/v1/namespaces/default/configmaps/{names.job_map(job)}"
        data = eventually("the job's map", lambda: api.get(path)["data"])
    merged = {"shadow": ["straggler"], "hang": {"steps": 7, "marginSeconds": 30}}
    assert json.loads(data["job.yaml"])["spec"]["detection"] == merged
    assert api.get(f"{JOBS}/{job}")["spec"]["detection"] == {"hang": {"steps": 7}}


def csr_for(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.DNSName(name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(san, critical=False).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def report(api: Rest, job: str, **driver: Any) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    api.merge(f"{JOBS}/{job}/status", {"status": {"driver": {"updatedAt": stamp, **driver}}})


def test_a_convicted_node_is_quarantined_and_the_breaker_refuses_the_next(
    kubeconfig: Path, api: Rest
) -> None:
    limits = ["--mode", "Enforce", "--max-quarantined-share", "0.2"]
    with operator(kubeconfig, "carer", *limits):
        led_by(api, "carer")
        job = new_job(api, remediation={"mode": "Enforce"})
        all_made(api, job)
        request = {"incident": "i-1", "reason": "XID 79 on GPU 3"}
        report(api, job, jobState="running", requests={"slots": 3, "quarantine": [{"node": "n1", **request}]})
        eventually("n1 is cordoned", lambda: api.get("/api/v1/nodes/n1")["spec"].get("unschedulable"))
        answer = eventually(
            "the job's status lists it", lambda: api.get(f"{JOBS}/{job}")["status"]["operator"]["quarantined"]
        )
        assert [(one["node"], one["incident"]) for one in answer] == [("n1", "i-1")]
        both = [{"node": node, **request} for node in ("n1", "n2")]
        report(api, job, requests={"slots": 3, "quarantine": both})
        refusal = eventually("a refusal", lambda: api.get(f"{JOBS}/{job}")["status"]["operator"]["refusals"])[
            0
        ]
        assert refusal["node"] == "n2"
        assert "breaker open: 1 of 5 nodes" in refusal["reason"]
    with operator(kubeconfig, "carer-after", *limits):
        led_by(api, "carer-after")
        time.sleep(2)
        assert not api.get("/api/v1/nodes/n2")["spec"].get("unschedulable"), "the breaker's count remains"
        api.merge("/api/v1/nodes/n1", {"spec": {"unschedulable": None}})
        eventually(
            "the taint is removed when a person uncordons",
            lambda: names.TAINT not in str(api.get("/api/v1/nodes/n1")["spec"]),
        )


def test_a_driver_gets_its_certificate(kubeconfig: Path, api: Rest) -> None:
    with operator(kubeconfig, "signer"):
        led_by(api, "signer")
        job = new_job(api)
        all_made(api, job)
        csr = csr_for(f"{job}.default.driver.megascale")
        maps = "/api/v1/namespaces/default/configmaps"
        api.merge(f"{maps}/{job}-driver", {"data": {"driver.csr": csr}})
        signed = eventually("a certificate", lambda: api.get(f"{maps}/{job}-slots")["data"].get("driver.crt"))
        assert "BEGIN CERTIFICATE" in signed
        assert "BEGIN CERTIFICATE" in api.get(f"{maps}/{job}-job")["data"]["ca.crt"]


def test_deletion_waits_for_the_save_and_leaves_nothing(kubeconfig: Path, api: Rest) -> None:
    with operator(kubeconfig, "undertaker"):
        led_by(api, "undertaker")
        job = new_job(api)
        all_made(api, job)
        for name in pods_of(api, job):
            api.merge(f"/api/v1/namespaces/default/pods/{name}/status", {"status": {"phase": "Running"}})
        report(api, job, state="running")
        api.delete(f"{JOBS}/{job}")
        time.sleep(1)
        assert len(pods_of(api, job)) == 4
        report(api, job, state="stopped")
        deleting = eventually(
            "pods are being deleted",
            lambda: all(
                one["metadata"].get("deletionTimestamp")
                for one in api.get("/api/v1/namespaces/default/pods", labelSelector=f"{names.JOB}={job}")[
                    "items"
                ]
            ),
        )
        assert deleting
        for name in pods_of(api, job):
            api.delete(f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})
        eventually("the job is gone", lambda: job not in str(api.get(JOBS)))


def test_a_job_whose_driver_never_reported_is_not_waited_for(kubeconfig: Path, api: Rest) -> None:
    with operator(kubeconfig, "quick"):
        led_by(api, "quick")
        job = new_job(api)
        all_made(api, job)
        api.delete(f"{JOBS}/{job}")
        path = "/api/v1/namespaces/default/pods"
        eventually(
            "pods are being deleted",
            lambda: all(
                one["metadata"].get("deletionTimestamp")
                for one in api.get(path, labelSelector=f"{names.JOB}={job}")["items"]
            ),
        )
        for name in pods_of(api, job):
            api.delete(f"{path}/{name}", {"gracePeriodSeconds": 0})
        eventually("the job is gone", lambda: job not in str(api.get(JOBS)))


def test_a_job_with_another_manager_is_not_changed(kubeconfig: Path, api: Rest) -> None:
    with operator(kubeconfig, "modest"):
        led_by(api, "modest")
        other = new_job(api, managedBy="kueue.x-k8s.io/multikueue")
        mine = new_job(api)
        all_made(api, mine)
        assert pods_of(api, other) == []
        found = api.get(f"{JOBS}/{other}")
        assert not found["metadata"].get("finalizers")
        assert "status" not in found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_metrics_and_probes(kubeconfig: Path, api: Rest) -> None:
    metrics, health = free_port(), free_port()
    ports = ("--metrics-port", str(metrics), "--health-port", str(health))
    with operator(kubeconfig, "probed", "--address", "127.0.0.1", *ports):
        led_by(api, "probed")

        def page(port: int, path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.read().decode()

        assert page(health, "/healthz") == "ok"
        assert page(health, "/readyz") == "ok"
        eventually(
            "it leads",
            lambda: "megascale_operator_leader 1.0" in page(metrics, "/metrics"),
        )
        assert re.search(
            r'megascale_operator_watch_age_seconds\{resource="pods"\} \d', page(metrics, "/metrics")
        )


def slots_of(api: Rest, job: str) -> str:
    """The job's `status.nodes`."""
    text = api.get(f"/api/v1/namespaces/default/configmaps/{job}-slots")["data"]["slots.json"]
    return " ".join(slot["node"] for slot in json.loads(text)["slots"])


def check_pods(api: Rest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(
        "/api/v1/namespaces/megascale-system/pods", labelSelector=names.CHECK
    )["items"]
    return found


def test_a_node_check_releases_a_quarantined_node_after_two_passes(kubeconfig: Path, api: Rest) -> None:
    """The test plays the kubelet: it ends each pod with a verdict."""
    add_node(api, "n-sick")
    limits = ["--mode", "Enforce", "--max-quarantined-share", "1", "--max-quarantines-per-hour", "100"]
    with operator(kubeconfig, "checker", *limits):
        led_by(api, "checker")
        job = new_job(api, remediation={"mode": "Enforce"})
        all_made(api, job)
        request = {"node": "n-sick", "incident": "i-1", "reason": "XID 79"}
        report(api, job, requests={"slots": 3, "avoidNodes": ["n-sick"], "quarantine": [request]})
        eventually("it is cordoned", lambda: api.get("/api/v1/nodes/n-sick")["spec"].get("unschedulable"))
        for pod in api.get("/api/v1/namespaces/default/pods")["items"]:
            if pod["spec"].get("nodeName") == "n-sick":
                name = pod["metadata"]["name"]
                api.delete(f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})
        # The request is still there, but must not cause another quarantine of a released node.
        report(api, job, requests={"slots": 3, "avoidNodes": ["n-sick"], "quarantine": [request]})
        eventually("no slot runs on it", lambda: "n-sick" not in slots_of(api, job))
        time.sleep(1.0)  # pods have whole seconds: one of the quarantine's own second does not count
        checks = "/apis/megascale.io/v1alpha1/nodechecks"
        kind = {"apiVersion": "megascale.io/v1alpha1", "kind": "NodeCheck"}
        api.create(checks, {**kind, "metadata": {"name": "after-repair"}, "spec": {"nodes": ["n-sick"]}})
        verdict = json.dumps({"verdict": "healthy", "reason": "every check passed"})
        for count in (1, 2):
            pods = eventually(
                f"round {count}", lambda count=count: len(check_pods(api)) == count and check_pods(api)
            )
            assert api.get("/api/v1/nodes/n-sick")["spec"]["unschedulable"] is True
            name = max(one["metadata"]["name"] for one in pods)
            ended = {"exitCode": 0, "reason": "Completed", "message": verdict}
            container = {
                "name": "check", "image": "none:1", "imageID": "", "ready": False, "restartCount": 0,
                "state": {"terminated": ended},
            }  # fmt: skip
            path = f"/api/v1/namespaces/megascale-system/pods/{name}/status"
            api.merge(path, {"status": {"phase": "Succeeded", "containerStatuses": [container]}})
        eventually(
            "n-sick is back in service",
            lambda: not api.get("/api/v1/nodes/n-sick")["spec"].get("unschedulable"),
        )
        node = api.get("/api/v1/nodes/n-sick")
        assert names.TAINT not in str(node["spec"])
        assert names.QUARANTINE not in node["metadata"]["annotations"]
        time.sleep(1.0)
        assert not api.get("/api/v1/nodes/n-sick")["spec"].get("unschedulable"), "not quarantined again"
        status = eventually(
            "it is complete",
            lambda: (found := api.get(f"{checks}/after-repair")["status"]).get("completionTime") and found,
        )
        assert status["passed"] == 1
        eventually("its pods are gone", lambda: not check_pods(api))
