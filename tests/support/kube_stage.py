"""A stand-in for the operator: it creates a job's objects and slots, and signs the driver's CSR.

Driver and agents are the real programs, run as local processes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megascale_operator.reconcile import names
from megascale_operator.tls.authority import Authority
from programs import Program
from rest import Json, Rest

NAME = "q"
_STEPS = Path(__file__).parents[1] / "kube" / "support" / "suite" / "steps.py"
_API = "/apis/megascale.io/v1alpha1"


@dataclass
class Slot:
    """A slot's pod and, when started, its agent."""

    number: int
    incarnation: int
    node: str
    uid: str
    leaving: str = ""
    program: Program | None = None

    @property
    def pod(self) -> str:
        return names.slot_pod(NAME, self.number, self.incarnation)

    def entry(self) -> Json:
        return {
            "slot": self.number, "incarnation": self.incarnation, "pod": self.pod, "uid": self.uid,
            "node": self.node, "nodeReady": True, "ip": "127.0.0.1", "phase": "Running", "ready": True,
            "leaving": self.leaving, "exit": None, "restarts": 0,
        }  # fmt: skip


@dataclass
class KubeStage:
    """One job in its own namespace."""

    api: Rest
    kubeconfig: Path
    folder: Path
    namespace: str
    slots: list[Slot] = field(default_factory=list)
    gone: list[Json] = field(default_factory=list)
    drivers: list[Program] = field(default_factory=list)
    authority: Authority = field(default_factory=lambda: Authority.create(datetime.now(UTC)))

    @property
    def job_path(self) -> str:
        return f"{_API}/namespaces/{self.namespace}/trainingjobs/{NAME}"

    def map_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps/{name}"

    def begin(self, *, nodes: int = 2, spares: int = 0, steps: int = 10_000, step_s: float = 0.05) -> None:
        """Create the job and its ConfigMaps as the operator does."""
        self.api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        state = self.folder / "state"
        state.mkdir()
        shutil.copy(_STEPS, state / "steps.py")
        spec = {
            "nodes": nodes,
            "spareNodes": spares,
            "steps": steps,
            "runtime": {
                "command": {"args": ["python", str(state / "steps.py"), str(state), str(steps), str(step_s)]}
            },
            "checkpoint": {"uri": str(self.folder / "store")},
            "health": {"heartbeatSeconds": 1, "silenceSeconds": 20},
        }
        body = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": NAME}}
        job = self.api.create(self.job_path.rsplit("/", 1)[0], body | {"spec": spec})
        self.uid = job["metadata"]["uid"]
        manifest = body | {"spec": job["spec"]}
        self._make_map(names.job_map(NAME), **{"job.yaml": json.dumps(manifest)})
        for name in (names.driver_map(NAME), names.record_map(NAME), names.slots_map(NAME)):
            self._make_map(name)
        (self.folder / "job.yaml").write_text(json.dumps(manifest))
        (self.folder / "ca.crt").write_text(self.authority.certificate_pem)

    def _make_map(self, name: str, **data: str) -> None:
        self.api.create(self.map_path(name).rsplit("/", 1)[0], {"metadata": {"name": name}, "data": data})

    def map(self, name: str) -> dict[str, str]:
        """Return the data of a ConfigMap."""
        return dict(self.api.get(self.map_path(name)).get("data") or {})

    def add_slot(self, node: str, number: int, incarnation: int = 0) -> Slot:
        """Create a pod object on a node, and its entry in `slots.json`."""
        pod = {
            "metadata": {"name": names.slot_pod(NAME, number, incarnation)},
            "spec": {"nodeName": node, "containers": [{"name": "slot", "image": "none:1"}]},
        }
        made = self.api.create(f"/api/v1/namespaces/{self.namespace}/pods", pod)
        slot = Slot(number, incarnation, node, made["metadata"]["uid"])
        self.slots.append(slot)
        self.publish()
        return slot

    def publish(self) -> None:
        """Write `<job>-slots`: the slots, and the driver's certificate if it has published a CSR."""
        document = {"slots": [slot.entry() for slot in self.slots], "gone": self.gone}
        data = {"slots.json": json.dumps(document)}
        request = self.map(names.driver_map(NAME)).get("driver.csr", "")
        if request:
            name = names.server_name(NAME, self.namespace)
            data["driver.crt"] = self.authority.sign(request, name, datetime.now(UTC))
        self.api.merge(self.map_path(names.slots_map(NAME)), {"data": data})

    def token(self, slot: Slot, *, audience: str = "", seconds: int = 3600) -> str:
        """Return a token bound to the slot's pod; `audience` "" is the one the driver expects."""
        audience = audience or names.audience(self.namespace, self.uid)
        bound = {"kind": "Pod", "apiVersion": "v1", "name": slot.pod, "uid": slot.uid}
        spec = {"audiences": [audience], "expirationSeconds": seconds, "boundObjectRef": bound}
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default/token"
        return str(self.api.create(path, {"spec": spec})["status"]["token"])

    def start_driver(self, incarnation: int = 0) -> Program:
        """Start a driver process and wait until it has published its address."""
        folder = self.folder / f"driver-{incarnation}-{len(self.drivers)}"
        folder.mkdir()
        pod = names.driver_pod(NAME, incarnation)
        arguments = ["--namespace", self.namespace, "--job", NAME, "--pod", pod, "--pod-ip", "127.0.0.1"]
        arguments += ["--metrics-port", "0"]
        arguments += ["--run-dir", str(folder / "work"), "--kubeconfig", str(self.kubeconfig)]
        program = Program("megascale_operator.driver", arguments, folder / "driver.log")
        term = self.address().get("term", 0)
        request = self.map(names.driver_map(NAME)).get("driver.csr", "")
        program.start()
        self.drivers.append(program)
        eventually(lambda: self.map(names.driver_map(NAME)).get("driver.csr", "") != request)
        self.publish()
        eventually(lambda: self.address().get("term", 0) > term)
        return program

    def address(self) -> Json:
        """Return the published `driver.json`, and write it to the file that agents read."""
        text = self.map(names.driver_map(NAME)).get("driver.json", "")
        if not text:
            return {}
        fresh = self.folder / "driver.json.new"
        fresh.write_text(text)
        fresh.replace(self.folder / "driver.json")
        return dict(json.loads(text))

    def start_agent(self, slot: Slot) -> Program:
        work = self.folder / f"work-{slot.pod}"
        work.mkdir(exist_ok=True)
        (work / "token").write_text(self.token(slot))
        arguments = [
            str(work), slot.node,
            "--job-file", str(self.folder / "job.yaml"),
            "--driver-file", str(self.folder / "driver.json"),
            "--token-file", str(work / "token"),
            "--ca-file", str(self.folder / "ca.crt"),
            "--server-name", names.server_name(NAME, self.namespace),
            "--host", "127.0.0.1",
            "--pod", slot.pod,
            "--kernel-log", str(work / "kmsg"),
            "--grace", "5",
        ]  # fmt: skip
        (work / "kmsg").touch()
        slot.program = Program("megascale.agent", arguments, work / "agent.log")
        slot.program.start()
        return slot.program

    def status(self) -> Json:
        """`status.driver`."""
        return dict((self.api.get(self.job_path).get("status") or {}).get("driver") or {})

    def until(self, holds: Callable[[Json], Any], timeout_s: float = 100.0) -> Json:
        """Wait for and return the first `status.driver` for which `holds`."""
        return eventually(lambda: (status := self.status()) and holds(status) and status, timeout_s)

    def rank_step(self, rank: int = 0) -> int:
        """Return the step that the training script itself has recorded."""
        path = self.folder / "state" / f"rank-{rank}"
        return int(path.read_text()) if path.exists() else 0

    def close(self) -> None:
        # Without a driver the ranks save and exit at once.
        for program in self.drivers:
            program.stop()
        for slot in self.slots:
            if slot.program:
                slot.program.stop(15.0)


def eventually(look: Callable[[], Any], timeout_s: float = 100.0) -> Any:
    """Poll `look` until its result is true; return it."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, f"nothing within {timeout_s:g} s"
        time.sleep(0.05)
    return found
