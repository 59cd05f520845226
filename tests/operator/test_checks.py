"""NodeChecks: one pod per node, busy nodes are skipped, quarantined nodes that pass are released."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate
from hypothesis import given
from hypothesis import strategies as st
from kube_world import START, node_object
from megascale_operator.checks.decide import CheckPlan, plan_check
from megascale_operator.checks.pod import check_pod
from megascale_operator.checks.status import status_of
from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.records import node_record, pod_record

CHECK: Obj = {"metadata": {"name": "weekly", "uid": "uid-check", "generation": 1}}
PASSED = {"verdict": "healthy", "reason": "every check passed"}
CONVICTED = {"verdict": "convicted", "reason": "products gave wrong numbers"}


def quarantined(name: str, cause: str = "hardware", since: float = START - 60, **changes: Any) -> Obj:
    found = {"mode": "Enforce", "cause": cause, "reason": "slow XID 79 on n1", "since": since}
    mark = json.dumps({**found, "set": ["cordon", "taint"]})
    taint = {"key": names.TAINT, "value": "x", "effect": "NoSchedule"}
    metadata = {"annotations": {names.QUARANTINE: mark}}
    return node_object(name, metadata=metadata, spec={"taints": [taint], "unschedulable": True}, **changes)


@dataclass
class Checking:
    """A running NodeCheck; the test ends its pods."""

    spec: dict[str, Any]
    nodes: dict[str, Obj]
    busy: dict[str, str] = field(default_factory=dict)
    pods: dict[str, Obj] = field(default_factory=dict)
    now: float = START
    most_running: int = 0

    def plan(self) -> CheckPlan:
        records = {name: node_record(obj) for name, obj in self.nodes.items()}
        pods = [pod_record(pod) for pod in self.pods.values()]
        return plan_check(self.checked, records, pods, self.busy, self.now)

    @property
    def checked(self) -> NodeCheckSpec:
        return NodeCheckSpec.model_validate(self.spec)

    def start(self) -> list[str]:
        """Create the planned pods; return their nodes."""
        plan = self.plan()
        for node, number in plan.start:
            pod = check_pod(CHECK, self.checked, node, number, "megascale-system", "image:1")
            pod["metadata"] |= {
                "uid": f"{node}-{number}",
                "resourceVersion": "1",
                "creationTimestamp": stamp(self.now),
            }
            assert pod["metadata"]["name"] not in self.pods
            self.pods[pod["metadata"]["name"]] = pod | {"status": {"phase": "Running"}}
        self.most_running = max(self.most_running, sum(1 for one in self.pods.values() if running(one)))
        return [node for node, _ in plan.start]

    def end(self, node: str, verdict: dict[str, Any] | None) -> None:
        pod = next(one for one in self.pods.values() if running(one) and pod_record(one).target == node)
        bad = verdict is None or verdict["verdict"] == "convicted"
        ended = {"exitCode": int(bad), "message": json.dumps(verdict) if verdict else ""}
        pod["status"] = {
            "phase": "Failed" if bad else "Succeeded",
            "containerStatuses": [{"state": {"terminated": ended}}],
        }

    def results(self) -> dict[str, str]:
        return {node: one.result for node, one in self.plan().outcomes.items()}


def running(pod: Obj) -> bool:
    return pod["status"]["phase"] == "Running"


def cluster(*names_: str) -> dict[str, Obj]:
    return {name: node_object(name) for name in names_}


def test_every_node_is_checked_once_and_the_worst_result_comes_first() -> None:
    check = Checking({"node_selector": {}}, cluster("n1", "n2", "n3"))
    assert check.start() == ["n1", "n2", "n3"]
    check.end("n1", PASSED)
    check.end("n2", CONVICTED)
    check.end("n3", None)
    plan = check.plan()
    assert plan.done
    status = status_of(CHECK, plan, START)
    assert [(one["result"], one["nodes"]) for one in status["groups"]] == [
        ("convicted", ["n2"]), ("unknown", ["n3"]), ("passed", ["n1"]),
    ]  # fmt: skip
    assert (status["total"], status["passed"], status["convicted"], status["unknown"]) == (3, 1, 1, 1)
    assert status["state"] == "Completed"
    assert status_of({**CHECK, "status": status}, plan, START + 60) == status, "unchanged: not written"


def test_nodes_that_run_a_job_are_skipped() -> None:
    check = Checking({"nodes": ["n1", "n2", "nowhere"]}, cluster("n1", "n2"), busy={"n1": "q-0-0"})
    assert check.start() == ["n2"]
    assert check.results() == {"n1": "skipped", "n2": "running", "nowhere": "skipped"}


def test_a_selector_takes_the_nodes_that_have_its_labels() -> None:
    nodes = {
        name: node_object(name, metadata={"labels": {"gpu": gpu}}) for name, gpu in (("n1", "a"), ("n2", "b"))
    }
    assert Checking({"node_selector": {"gpu": "b"}}, nodes).start() == ["n2"]


@given(st.integers(1, 5), st.integers(1, 12))
def test_at_most_max_concurrent_nodes_are_checked_at_once(most: int, total: int) -> None:
    check = Checking({"node_selector": {}, "max_concurrent": most}, cluster(*(f"n{n}" for n in range(total))))
    done: list[str] = []
    while len(done) < total:
        started = check.start()
        assert started
        for node in started:
            check.end(node, PASSED)
        done += started
    assert check.most_running <= most
    assert sorted(done) == sorted(check.nodes)
    assert check.plan().done


def test_a_node_with_a_hardware_verdict_must_pass_twice() -> None:
    check = Checking({"nodes": ["n1"]}, {"n1": quarantined("n1")})
    check.start()
    check.end("n1", PASSED)
    assert check.plan().release == []
    assert check.start() == ["n1"]
    check.end("n1", PASSED)
    plan = check.plan()
    assert plan.release == ["n1"]
    assert plan.done


def test_one_pass_releases_a_straggler() -> None:
    check = Checking({"nodes": ["n1"]}, {"n1": quarantined("n1", "straggler")})
    check.start()
    check.end("n1", PASSED)
    assert check.plan().release == ["n1"]


def test_a_pass_from_before_the_quarantine_does_not_end_it() -> None:
    check = Checking({"nodes": ["n1", "n2"]}, cluster("n1", "n2"))
    check.start()
    check.end("n1", PASSED)
    check.now += 10
    check.nodes["n1"] = quarantined("n1", "straggler", since=check.now)
    assert check.plan().release == []
    check.now += 1
    check.busy = {"n1": "q-0-0"}
    assert check.results()["n1"] == "skipped", "the job has not left yet"
    check.busy = {}
    assert check.start() == ["n1"]
    check.end("n1", PASSED)
    assert check.plan().release == ["n1"]


def test_a_node_that_fails_the_second_check_stays_in_quarantine() -> None:
    check = Checking({"nodes": ["n1"]}, {"n1": quarantined("n1")})
    check.start()
    check.end("n1", PASSED)
    check.start()
    check.end("n1", CONVICTED)
    assert check.results() == {"n1": "convicted"}
    assert check.plan().release == []


def test_a_verdict_that_is_unknown_releases_nothing() -> None:
    check = Checking({"nodes": ["n1"]}, {"n1": quarantined("n1", "straggler")})
    check.start()
    check.end("n1", {"verdict": "unknown", "reason": "nothing says what to expect here"})
    assert check.results() == {"n1": "unknown"}
    assert check.plan().release == []


def test_a_cordon_set_by_a_person_is_not_removed() -> None:
    check = Checking({"nodes": ["n1"]}, {"n1": node_object("n1", spec={"unschedulable": True})})
    check.start()
    check.end("n1", PASSED)
    assert check.results() == {"n1": "passed"}
    assert check.plan().release == []


def test_a_check_that_never_ends_is_unknown() -> None:
    check = Checking({"nodes": ["n1"], "timeout_seconds": 60}, cluster("n1"))
    check.start()
    check.now += 61
    assert check.results() == {"n1": "unknown"}
    assert check.plan().done


def test_the_status_of_many_nodes_is_bounded() -> None:
    check = Checking({"node_selector": {}, "max_concurrent": 256}, cluster(*(f"n{n:03}" for n in range(200))))
    check.start()
    for index, node in enumerate(check.nodes):
        check.end(node, {"verdict": "convicted", "reason": f"reason {index % 50}"})
    status = status_of(CHECK, check.plan(), START)
    assert len(status["groups"]) == 32
    assert all(len(one["nodes"]) <= 20 for one in status["groups"])
    assert status["convicted"] == 200


def test_its_pod_goes_to_that_node_only_and_tolerates_our_taint() -> None:
    spec = NodeCheckSpec.model_validate({"nodes": ["n1"], "resources": {"limits": {"nvidia.com/gpu": 8}}})
    pod = check_pod(CHECK, spec, "n1", 0, "megascale-system", "image:1")
    kubernetes_validate.validate(pod, "1.33", strict=True)
    assert pod["metadata"]["namespace"] == "megascale-system"
    assert "nodeName" not in pod["spec"], "GPUs are requested from the scheduler"
    assert names.TAINT in [one.get("key") for one in pod["spec"]["tolerations"]]
    assert pod["spec"]["activeDeadlineSeconds"] == 300
    assert (
        pod_record({**pod, "metadata": {**pod["metadata"], "uid": "u", "resourceVersion": "1"}}).target
        == "n1"
    )
