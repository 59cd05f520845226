"""`megascale cluster` with the real kubectl against the double: install, doctor, uninstall."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rest import Rest

ROOT = Path(__file__).parents[2]
SYSTEM = "megascale-system"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/megascale-operator"
JOBS = "/apis/megascale.io/v1alpha1/namespaces/default/trainingjobs"
FINALIZER = "megascale.io/save-before-delete"

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]


def kubectl(kubeconfig: Path, *arguments: str) -> str:
    command = ["kubectl", f"--kubeconfig={kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def megascale(kubeconfig: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from megascale.cli.main import main; main()"
    options = ["cluster", command, f"--kubeconfig={kubeconfig}", *arguments]
    return subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=False, timeout=110
    )


def findings(kubeconfig: Path) -> tuple[int, dict[str, str]]:
    done = megascale(kubeconfig, "doctor", "--json")
    return done.returncode, {f["check"]: f["status"] for f in json.loads(done.stdout)["findings"]}


def install(kubeconfig: Path, *arguments: str) -> None:
    done = megascale(kubeconfig, "install", "--wait", "0", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster on which the operator is installed."""
    detection = tmp_path_factory.mktemp("defaults") / "detection.yaml"
    detection.write_text("shadow: [straggler]\nhang: {marginSeconds: 30}\n")
    install(
        kubeconfig,
        "--image",
        "registry.example.com:5000/a/m:2",
        "--mode",
        "Enforce",
        "--checkpoint-root",
        "claim:checkpoints",
        "--detection-defaults",
        str(detection),
    )
    return kubeconfig


def as_if_running(api: Rest) -> None:
    """Write the status that a cluster's controllers and a leading operator would write."""
    api.merge(f"{DEPLOYMENT}/status", {"status": {"replicas": 2, "availableReplicas": 2}})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "megascale-operator"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 3600, "renewTime": now},
    }
    api.create(f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases", lease)


def hold(api: Rest, name: str) -> None:
    api.merge(f"{JOBS}/{name}", {"metadata": {"finalizers": [FINALIZER]}})


def test_install_sets_image_mode_and_defaults(installed: Path, api: Rest) -> None:
    (container,) = api.get(DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == values["IMAGE"] == "registry.example.com:5000/a/m:2"
    assert values["MODE"] == "Enforce"
    assert values["CHECKPOINT_ROOT"] == "claim:checkpoints"
    defaults = json.loads(values["DETECTION_DEFAULTS"])
    assert defaults == {"shadow": ["straggler"], "hang": {"marginSeconds": 30}}
    assert "--detection-defaults=$(DETECTION_DEFAULTS)" in container["args"]


def test_invalid_detection_defaults_are_refused_before_installing(kubeconfig: Path, tmp_path: Path) -> None:
    file = tmp_path / "detection.yaml"
    file.write_text("hang: {steps: 0}")
    done = megascale(kubeconfig, "install", "--print", "--detection-defaults", str(file))
    assert done.returncode == 2
    assert "detection.yaml:1: hang.steps: got 0, expected a number from 1 to 1000" in done.stderr


def test_doctor_reports_what_is_missing_and_what_is_ok(installed: Path, api: Rest) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nodechecks.megascale.io"
    current: dict[str, Any] = api.get(path)
    older = copy.deepcopy(current)
    older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "older"
    api.update(path, older)
    code, found = findings(installed)
    assert code == 1
    assert {check for check, status in found.items() if status == "change"} == {
        "operator", "leader", "CRD nodechecks"
    }  # fmt: skip
    as_if_running(api)
    older["spec"] = current["spec"]
    older["metadata"]["resourceVersion"] = api.get(path)["metadata"]["resourceVersion"]
    api.update(path, older)
    code, found = findings(installed)
    assert (code, set(found.values())) == (0, {"ok"})


def test_kubectl_accepts_the_examples(installed: Path, api: Rest) -> None:
    for name in ("quickstart", "175b"):
        kubectl(installed, "apply", "-f", f"examples/{name}.yaml")
    kubectl(installed, "apply", "-k", "examples/ddp")
    lines = kubectl(installed, "get", "tj").splitlines()
    assert lines[0].split() == ["NAME", "STATE", "NODES", "STEP", "MFU", "GOODPUT", "RESTARTS", "AGE"]
    assert [line.split()[0] for line in lines[1:]] == ["ddp", "gpt-175b", "quickstart"]
    kubectl(installed, "apply", "-f", "examples/quickstart.yaml")
    assert api.get(f"{JOBS}/quickstart")["metadata"]["generation"] == 1
    kubectl(installed, "delete", "tj", "ddp", "gpt-175b")


def test_uninstall_needs_yes_and_then_lets_jobs_save(installed: Path, api: Rest) -> None:
    hold(api, "quickstart")
    refused = megascale(installed, "uninstall")
    assert refused.returncode == 2
    assert "default/quickstart" in refused.stderr
    assert api.get(f"{JOBS}/quickstart")["metadata"].get("deletionTimestamp") is None
    saved = threading.Event()

    def operator() -> None:
        since = api.get(JOBS)["metadata"]["resourceVersion"]
        with api.watch(JOBS, resourceVersion=since) as events:
            for event in events:
                if event["object"]["metadata"].get("deletionTimestamp"):
                    saved.set()
                    api.merge(f"{JOBS}/quickstart", {"metadata": {"finalizers": []}})
                    return

    threading.Thread(target=operator, daemon=True).start()
    done = megascale(installed, "uninstall", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert saved.is_set()
    assert "removing its finalizer" not in done.stderr
    assert json.loads(done.stdout)["jobsDeleted"] == ["default/quickstart"]
    left = kubectl(installed, "get", "crd,clusterroles,clusterrolebindings,namespaces", "-o", "name")
    assert "namespace/default" in left
    assert "megascale" not in left


def test_uninstall_does_not_wait_without_an_operator(kubeconfig: Path, api: Rest) -> None:
    install(kubeconfig)
    (container,) = api.get(DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "megascale:0.1.0"
    kubectl(kubeconfig, "apply", "-f", "examples/quickstart.yaml")
    hold(api, "quickstart")
    done = megascale(kubeconfig, "uninstall", "--yes", "--drain-seconds", "1000")
    assert done.returncode == 0, done.stderr
    assert "default/quickstart was not saved in time: removing its finalizer" in done.stderr


def test_an_unreachable_cluster(tmp_path: Path) -> None:
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(json.dumps(config))
    done = megascale(tmp_path / "config", "doctor")
    assert done.returncode == 3
    assert "refused" in done.stderr
    assert megascale(tmp_path / "missing", "doctor").returncode == 2
