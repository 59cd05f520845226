"""A cluster with CRDs, nodes and operators, and the actions of tests on it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml
from kubelet.control import Control
from objects import eventually
from programs import Program, api_server, kubelet, proxy
from proxy.control import Faults
from rest import Cluster, Refused, Rest
from simulated.nodes import SELECTOR

from suite.jobs import Job

Json = dict[str, Any]
_ROOT = Path(__file__).parents[4]
_DEPLOY = _ROOT / "deploy"
SYSTEM = "megascale-system"
OPERATORS = ("operator-a", "operator-b")
PODS = "pods"


@dataclass(frozen=True)
class Patience:
    """Timeouts in seconds for the cluster's reactions, which are longer on a real cluster."""

    silent_node_s: float
    orphaned_pods_s: float
    usual_s: float = 150.0


DOUBLE, REAL = Patience(3.0, 2.0), Patience(60.0, 120.0, 180.0)


@dataclass
class Site:
    """A context manager; only one at a time per cluster. `kubeconfig` None starts a double.

    At exit its nodes and the objects applied through it are deleted; installed objects stay.
    """

    folder: Path
    kubeconfig: Path | None = None
    nodes: int = 4
    lease_s: float = 0.5
    node_grace_s: float = 3.0
    mode: str = "Observe"
    operators: dict[str, Program] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _applied: list[str] = field(default_factory=list)

    def __enter__(self) -> Site:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    @property
    def checkpoints(self) -> Path:
        """A folder for the checkpoints of jobs, usable as `--checkpoint-root`."""
        return self.folder / "checkpoints"

    def _start(self, stack: ExitStack) -> None:
        self.patience = REAL if self.kubeconfig else DOUBLE
        if self.kubeconfig is None:
            timing = (
                "--node-grace-seconds",
                str(self.node_grace_s),
                "--orphan-grace-seconds",
                "2",
                "--bookmark-seconds",
                "5",
            )
            stack.enter_context(api_server(self.folder / "api", *timing))
            self.kubeconfig = self.folder / "api" / "kubeconfig"
        self.api = Rest(Cluster.of(self.kubeconfig))
        program, url = proxy(self.folder / "proxy", self.kubeconfig, *OPERATORS, PODS)
        stack.enter_context(program)
        self.faults = Faults(url, self.folder / "proxy")
        self._install()
        lease_s = self.lease_s if self.patience is DOUBLE else 10.0
        program, url = kubelet(
            self.folder / "nodes", self.kubeconfig, "--nodes", str(self.nodes), "--prefix", "worker-",
            "--lease-seconds", str(lease_s), "--backoff-seconds", "1",
            "--api-url", self.faults.urls()[PODS], "--api-ca", str(self.folder / "proxy" / "ca.crt"),
        )  # fmt: skip
        stack.enter_context(program)
        self.control = Control(url)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.operators):
            self.stop_operator(name)
        try:
            self._tidy()
        finally:
            self._stack.close()

    def _tidy(self) -> None:
        """Delete the jobs and nodes of this site without saving, so that the next site starts clean."""
        self.faults.clear()
        for path in reversed(self._applied):
            if "/trainingjobs/" in path:
                self._gone(lambda path=path: self.api.merge(path, {"metadata": {"finalizers": []}}))
            self._gone(lambda path=path: self.api.delete(path))
            if path.startswith("/api/v1/namespaces/"):
                self._gone(lambda path=path: self.api.delete(f"{path}/pods", gracePeriodSeconds=0))
        for name in self.control.state():
            self.control.act(name, "stop")
            self._gone(lambda name=name: self.api.delete(f"/api/v1/nodes/{name}"))
        while self.api.delete("/api/v1/nodes", labelSelector=SELECTOR, limit=300).get("items"):
            pass

    @staticmethod
    def _gone(call: Callable[[], Json]) -> None:
        """Make a request; ignore that the object is gone or being deleted."""
        try:
            call()
        except Refused as refused:
            if refused.code not in {404, 409}:
                raise

    def _install(self) -> None:
        """Install CRDs, namespace and the operator's RBAC objects from the files that users apply."""
        for path in sorted((_ROOT / "operator" / "crds").glob("*.yaml")):
            self._put(yaml.safe_load(path.read_text()))
        for document in deployment(self.mode):
            if document["kind"] in _INSTALLED:
                self._put(document)

    def apply(self, document: Json) -> Json:
        """Server-side apply an object with the suite's own field manager."""
        self._applied.append(path_of(document))
        return self._put(document)

    def _put(self, document: Json) -> Json:
        return self.api.apply(path_of(document), document, "suite", force=True)

    def start_operator(self, name: str, *arguments: str) -> Program:
        """Start a replica with the operator's ServiceAccount, and wait until it is running."""
        kubeconfig = self._operator_kubeconfig(name)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        program = Program(
            "megascale_operator",
            ["--namespace", SYSTEM, "--mode", self.mode, "--image", "megascale:test", "--identity", name,
             "--kubeconfig", str(kubeconfig), "--metrics-port", "0", "--health-port", "0", *arguments],
            folder / "operator.log",
        )  # fmt: skip
        begin = time.time()
        program.start()
        self.operators[name] = program
        eventually(lambda: self._asked_for_lease(name, begin) or None, 60.0)
        return program

    def _asked_for_lease(self, name: str, since: float) -> bool:
        """Return whether a replica has requested the Lease, which it does once it is running."""
        lines = (line for line in self.faults.trail() if line["client"] == name and line["began"] >= since)
        return any("/leases" in line["path"] for line in lines)

    def stop_operator(self, name: str) -> None:
        program = self.operators.pop(name, None)
        if program:
            program.stop()

    def _operator_kubeconfig(self, name: str) -> Path:
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/megascale-operator/token"
        answer = self.api.create(path, {"spec": {"expirationSeconds": 7200}})
        ca = base64.b64encode(self.faults.ca_pem.encode()).decode()
        cluster = {"server": self.faults.urls()[name], "certificate-authority-data": ca}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": answer["status"]["token"]}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        target = self.folder / f"{name}.kubeconfig"
        target.touch(mode=0o600)
        target.write_text(json.dumps(config))
        return target

    def leader(self) -> str:
        """Return the holder of the operator's Lease, "" if there is none."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/megascale-operator"
        try:
            return str(self.api.get(path)["spec"].get("holderIdentity") or "")
        except Refused:
            return ""

    def ranks(self, job: Job) -> dict[str, list[int]]:
        """Return node -> process ids of the job's rank processes on it."""
        found: dict[str, list[int]] = {}
        for node, state in self.control.state().items():
            for pod, entry in state["pods"].items():
                if pod.startswith(f"{job.name}-") and "slot" in entry["pids"]:
                    found[node] = _training(entry["pids"]["slot"])
        return {node: pids for node, pids in found.items() if pids}

    def namespace(self, name: str) -> str:
        """Create a namespace and wait for its default ServiceAccount and CA."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def job(self, namespace: str, body: Json) -> Job:
        """Apply a job; return its helper."""
        body["metadata"]["namespace"] = namespace
        self.apply(body)
        return Job(self.api, namespace, body["metadata"]["name"], self.patience.usual_s)


_INSTALLED = frozenset(
    ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
)
_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PriorityClass": "priorityclasses",
}
_CLUSTER = frozenset(
    (
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "NodeCheck",
        "PriorityClass",
        "Node",
    )
)


def _training(pid: int) -> list[int]:
    """Return the descendants of a process that run steps.py."""
    try:
        tree = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return sorted(one.pid for one in tree if any("steps.py" in word for word in _command_line(one)))


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def path_of(document: Json) -> str:
    """Return the URL path of an object."""
    version, kind, meta = document["apiVersion"], document["kind"], document["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    space = "" if kind in _CLUSTER else f"/namespaces/{meta.get('namespace', 'default')}"
    return f"{root}{space}/{_PLURALS.get(kind, kind.lower() + 's')}/{meta['name']}"


def deployment(mode: str) -> Iterator[Json]:
    """Yield the objects of deploy/base, and the node permissions that `mode` needs."""
    files = sorted((_DEPLOY / "base").glob("*.yaml"))
    files += sorted((_DEPLOY / "components" / "node-rights").glob("*.yaml")) if mode != "Observe" else []
    for path in files:
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] in {"Kustomization", "Component"}:
                continue
            if document["kind"] not in _CLUSTER:
                document["metadata"].setdefault("namespace", SYSTEM)
            yield document
