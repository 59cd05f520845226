"""`kubectl megascale` against an API server; the test plays driver and operator."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kube_stage import NAME, KubeStage, eventually
from megascale_operator.plugin.__main__ import main
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DEFAULTS_FILE

from megascale.core.contract.codec import encode
from megascale.core.state.record import Exclusion, Incident, JobRecord, JobState, MilestoneTime

INCIDENT = Incident(
    "i-1",
    "crash",
    "rank 3 on worker-1 was killed by SIGKILL",
    node="worker-1",
    rank=3,
    action="restart_in_place",
    decision="restarting the processes on the same nodes is the cheapest cure",
    attempt=2,
    evidence=["Traceback (most recent call last)"],
    milestones={
        "fault": MilestoneTime(100.0),
        "detected": MilestoneTime(100.25),
        "firstStep": MilestoneTime(101.5),
    },
    outcome="recovered",
)


@pytest.fixture
def known_job(stage: KubeStage) -> KubeStage:
    """A job with one incident, a node it does not use, and a refusal by the operator."""
    stage.begin()
    record = JobRecord(
        term=2,
        attempt=3,
        state=JobState.ASSEMBLING,
        incidents=[INCIDENT],
        outstanding=1,
        excluded={"worker-9": Exclusion("fan noise", "i-0", 1.0)},
    )
    document = {"version": 1, "job": NAME, "term": 2, "core": encode(record)}
    path = stage.map_path(names.record_map(NAME))
    stage.api.merge(path, {"data": {"record.json": json.dumps(document)}})
    driver = {
        "state": "assembling",
        "jobState": "assembling",
        "step": 41,
        "steps": 100,
        "mfu": "0.471",
        "term": 2,
    }
    refusal = {"request": "slots", "node": "", "reason": "no room"}
    operator = {"slots": {"wanted": 3, "bound": 2, "ready": 2}, "refusals": [refusal]}
    status = {"status": {"state": "Recovering", "driver": driver, "operator": operator}}
    stage.api.merge(f"{stage.job_path}/status", status)
    return stage


def run(
    stage: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    target = ["--kubeconfig", str(stage.kubeconfig)]
    target += ["-n", stage.namespace] if arguments[0] != "check" else []
    monkeypatch.setattr("sys.argv", ["kubectl-megascale", *arguments, *target])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_what_is_known_of_a_job_is_told(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(*arguments: str) -> tuple[int, str, str]:
        return run(known_job, capsys, monkeypatch, *arguments)

    code, out, _ = tell("status")
    assert code == 0
    assert "41 / 100" in out
    assert "47.1%" in out
    assert "i-1" in out
    code, out, _ = tell("status", NAME, "--json")
    document = json.loads(out)
    assert (document["job"], document["driver"]["step"]) == (NAME, 41)
    assert document["incidents"][0]["recoverySeconds"] == 1.5
    code, out, _ = tell("incidents", NAME)
    assert "after the fault: detect 0.25 s, first step 1.50 s; recovered" in out
    code, out, _ = tell("why", NAME)
    assert "waiting for 1 requested nodes" in out
    assert "worker-9 (fan noise)" in out
    assert "the operator refused slots: no room" in out
    assert "decision: restart in place: restarting the processes" in out
    code, out, _ = tell("logs", NAME)
    assert code == 0
    assert "Traceback (most recent call last)" in out
    assert f"whole log: {known_job.folder / 'store'}/logs/attempt-2/rank-3.log" in out
    manifest = json.dumps({"spec": {"checkpoint": {"uri": "/mnt/checkpoints/q"}}})
    known_job.api.merge(known_job.map_path(names.job_map(NAME)), {"data": {"job.yaml": manifest}})
    _, out, _ = tell("logs", NAME)
    assert "whole log: /mnt/checkpoints/q/logs/attempt-2/rank-3.log" in out, "what the slots run counts"


def test_thresholds_are_told_with_their_origin(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = json.dumps({"shadow": ["straggler"], "hang": {"steps": 5}})
    known_job.api.merge(known_job.map_path(names.job_map(NAME)), {"data": {DEFAULTS_FILE: defaults}})
    known_job.api.merge(known_job.job_path, {"spec": {"detection": {"hang": {"steps": 7}}}})
    _, out, _ = run(known_job, capsys, monkeypatch, "status", NAME)
    assert "hang.steps 7 (job), shadow straggler (cluster)" in out
    _, out, _ = run(known_job, capsys, monkeypatch, "status", NAME, "--json")
    assert json.loads(out)["detection"]["shadow"] == {"value": ["straggler"], "from": "cluster"}


def test_pods_that_do_not_run_are_told_with_their_cause(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = f"/api/v1/namespaces/{known_job.namespace}/pods"
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    wrong = {"reason": "ImagePullBackOff", "message": "no such image"}
    statuses = {
        "lost-0": {"conditions": [unscheduled | {"message": "0/4 nodes are available"}]},
        "lost-1": {"conditions": [unscheduled | {"message": "0/4 nodes are available"}]},
        "image-0": {"initContainerStatuses": [_waits(wrong)]},
        "mount-0": {"containerStatuses": [_waits({"reason": "ContainerCreating"})]},
    }
    labels = {"app.kubernetes.io/managed-by": "megascale-operator", names.JOB: NAME, names.ROLE: "slot"}
    for name, status in statuses.items():
        spec = {"schedulerName": "nobody", "containers": [{"name": "slot", "image": "megascale:test"}]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        known_job.api.create(pods, {"apiVersion": "v1", "kind": "Pod", **body})
        known_job.api.merge(f"{pods}/{name}/status", {"status": {"phase": "Pending", **status}})
    for number, text in enumerate(("an old one", "hostPath type check failed: /ckpt is not a directory")):
        event = {
            "metadata": {"name": f"mount-0.{number}"},
            "involvedObject": {"kind": "Pod", "name": "mount-0", "namespace": known_job.namespace},
            "reason": "FailedMount",
            "type": "Warning",
            "message": text,
            "lastTimestamp": f"2026-11-29T00:00:0{number}Z",
        }
        path = f"/api/v1/namespaces/{known_job.namespace}/events"
        known_job.api.create(path, {"apiVersion": "v1", "kind": "Event", **event})
    code, out, _ = run(known_job, capsys, monkeypatch, "why", NAME)
    assert code == 0
    assert "2 pods wait, Unschedulable: 0/4 nodes are available (lost-0, lost-1)" in out
    assert "1 pod waits, ImagePullBackOff: no such image (image-0)" in out
    told = "1 pod waits, FailedMount: hostPath type check failed: /ckpt is not a directory (mount-0)"
    assert told in out
    code, out, _ = run(known_job, capsys, monkeypatch, "status", NAME)
    assert f"pods               {told}" in out


def _waits(reason: dict[str, str]) -> dict[str, Any]:
    return {
        "name": "slot",
        "image": "megascale:test",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": reason},
    }


def test_exit_codes_say_what_kind_of_trouble_it_is(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = run(known_job, capsys, monkeypatch, "status", "nobody")
    assert (code, "no TrainingJob 'nobody'" in err) == (2, True)
    code, _, err = run(known_job, capsys, monkeypatch, "status", "--context", "nowhere")
    assert (code, "nowhere" in err) == (2, True)
    away = known_job.kubeconfig.read_text().replace(known_job.api.cluster.url, "https://127.0.0.1:9")
    known_job.kubeconfig = tmp_path / "away"
    known_job.kubeconfig.write_text(away)
    code, _, err = run(known_job, capsys, monkeypatch, "status", NAME)
    assert (code, "does not respond" in err) == (3, True)


def test_orders_are_answered_by_the_driver(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def play_driver(answer: dict[str, Any]) -> threading.Thread:
        def obey() -> None:
            def given() -> str:
                annotations = known_job.api.get(known_job.job_path)["metadata"].get("annotations") or {}
                text = annotations.get(names.COMMAND, "")
                return text if text != before else ""

            order = json.loads(eventually(given))
            orders.append(order)
            status = {"status": {"driver": {"lastCommand": {"id": order["id"], **answer}}}}
            known_job.api.merge(f"{known_job.job_path}/status", status)

        annotations = known_job.api.get(known_job.job_path)["metadata"].get("annotations") or {}
        before = annotations.get(names.COMMAND, "")
        thread = threading.Thread(target=obey)
        thread.start()
        return thread

    orders: list[dict[str, str]] = []
    thread = play_driver({"ok": True, "message": "accepted"})
    code, out, _ = run(known_job, capsys, monkeypatch, "evict", "worker-1", "--reason", "fan", "--json")
    thread.join()
    assert (code, json.loads(out)["message"]) == (0, "accepted")
    assert (orders[0]["command"], orders[0]["node"], orders[0]["reason"]) == ("evict", "worker-1", "fan")
    thread = play_driver({"ok": False, "message": "no node 'worker-5'"})
    code, _, err = run(known_job, capsys, monkeypatch, "release", "worker-5")
    thread.join()
    assert (code, "no node 'worker-5'" in err) == (2, True)


def test_a_command_that_is_not_answered_is_not_replaced(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = json.dumps({"id": "o-1", "command": "evict", "node": "worker-1", "by": "ann"})
    known_job.api.merge(known_job.job_path, {"metadata": {"annotations": {names.COMMAND: order}}})
    code, _, err = run(known_job, capsys, monkeypatch, "release", "worker-2")
    assert code == 2
    assert "has not answered the command 'evict worker-1' of ann (id o-1)" in err
    assert f"kubectl annotate tj {NAME} -n {known_job.namespace} {names.COMMAND}-" in err
    assert known_job.api.get(known_job.job_path)["metadata"]["annotations"][names.COMMAND] == order
    monkeypatch.setattr("megascale_operator.plugin.commands._RESPONSE_TIMEOUT_S", 0.5)
    answer = {"id": "o-1", "ok": True, "message": "accepted"}
    known_job.api.merge(f"{known_job.job_path}/status", {"status": {"driver": {"lastCommand": answer}}})
    code, _, err = run(known_job, capsys, monkeypatch, "release", "worker-2")
    assert (code, "did not respond within 0.5 s" in err) == (3, True)
    written = known_job.api.get(known_job.job_path)["metadata"]["annotations"][names.COMMAND]
    assert json.loads(written)["node"] == "worker-2"


def test_a_command_that_the_driver_would_ignore_is_not_sent(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(known_job, capsys, monkeypatch, "evict", "worker-1", "--reason", "é" * 1000)
    assert (code, "--reason has 1000 characters" in err, "at most 4096" in err) == (2, True, True)
    assert names.COMMAND not in (known_job.api.get(known_job.job_path)["metadata"].get("annotations") or {})


def test_nobody_is_asked_once_the_job_has_ended(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = {"type": "Complete", "status": "True", "reason": "Done", "message": ""}
    ended |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
    known_job.api.merge(f"{known_job.job_path}/status", {"status": {"conditions": [ended]}})
    code, _, err = run(known_job, capsys, monkeypatch, "release", "worker-1")
    assert (code, "has ended (Complete)" in err) == (2, True)


def test_a_check_is_waited_for(
    stage: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/apis/megascale.io/v1alpha1/nodechecks"

    def play_operator() -> None:
        def made() -> str:
            items = stage.api.get(path)["items"]
            return next(
                (one["metadata"]["name"] for one in items if one["spec"]["nodes"] == ["w-1", "w-2"]), ""
            )

        groups = [{"result": "convicted", "reason": "compute 40% below", "count": 1, "nodes": ["w-2"]}]
        counts = {"state": "Completed", "total": 2, "passed": 1, "convicted": 1, "groups": groups}
        stage.api.merge(f"{path}/{eventually(made)}/status", {"status": counts})

    thread = threading.Thread(target=play_operator)
    thread.start()
    code, out, _ = run(stage, capsys, monkeypatch, "check", "w-1", "w-2")
    thread.join()
    assert code == 1
    assert "1 passed, 1 convicted" in out
    assert "convicted w-2: compute 40% below" in out


def test_texts_of_nodes_do_not_steer_the_terminal(
    known_job: KubeStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e\nforged"
    hostile = replace(INCIDENT, reason=evil, decision=evil, evidence=[evil])
    record = JobRecord(term=2, attempt=3, state=JobState.ASSEMBLING, incidents=[hostile])
    document = {"version": 1, "job": NAME, "term": 2, "core": encode(record)}
    path = known_job.map_path(names.record_map(NAME))
    known_job.api.merge(path, {"data": {"record.json": json.dumps(document)}})
    for command in ("incidents", "why", "status"):
        code, out, _ = run(known_job, capsys, monkeypatch, command, NAME)
        assert code == 0
        assert not re.search("[\x1b\x07\x9b\u202e]|^forged", out, re.MULTILINE)
        assert "\\x1b]0;owned" in out or command == "status"
