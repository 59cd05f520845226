"""A real driver against an API server, real agents over TLS; the test plays the operator."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from kube_stage import NAME, KubeStage, Slot, eventually
from megascale_operator.reconcile import names
from programs import Program

from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import bearer
from megascale.rpc.megascale_pb2_grpc import DriverStub

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(400)]


def train(stage: KubeStage, **sizes: Any) -> Program:
    """Two slots with agents and a driver, some steps done."""
    stage.begin(**sizes)
    for number in range(2):
        stage.add_slot(f"worker-{number}", number)
    driver = stage.start_driver()
    for slot in stage.slots:
        stage.start_agent(slot)
    eventually(lambda: stage.rank_step() >= 3)
    return driver


def refusal(stage: KubeStage, slot: Slot, token: str, node: str = "") -> str:
    """What the driver answers an agent that begins a stream with this token; "" = it is let in."""
    credentials = grpc.ssl_channel_credentials(stage.authority.certificate_pem.encode())
    name = names.server_name(NAME, stage.namespace)
    options = (("grpc.ssl_target_name_override", name),)
    fence = pb.Fence(node=node or slot.node, incarnation="x", term=0)
    hello = pb.AgentMessage(fence=fence, hello=pb.Hello(pid=1))
    with grpc.secure_channel(stage.address()["endpoint"], credentials, options=options) as channel:
        call = DriverStub(channel).Attach(iter([hello]), metadata=bearer(token), timeout=10.0)
        try:
            next(call)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return ""


def test_a_job_trains_to_its_end_and_its_events_and_logs_are_kept(stage: KubeStage) -> None:
    driver = train(stage, steps=60)
    first = stage.until(lambda status: status["jobState"] == "running" or status["state"] == "completed")
    assert (first["term"], first["pod"], first["requests"]["slots"]) == (1, "q-driver-0", 2)
    status = stage.until(lambda status: status["state"] == "completed")
    assert isinstance(status["goodput"], str)
    assert driver.process is not None
    assert driver.process.wait(30.0) == 0
    for slot in stage.slots:
        assert slot.program is not None
        assert slot.program.process is not None
        assert slot.program.process.wait(30.0) == 0
    record = json.loads(stage.map(names.record_map(NAME))["record.json"])
    assert (record["term"], record["pod"], record["core"]["state"]) == (1, "q-driver-0", "finished")
    store = stage.folder / "store"
    kinds = {json.loads(line).get("event", {}).get("kind") for line in (store / "events" / "1.jsonl").open()}
    assert {"DriverStarted", "NodeJoined", "RankExited"} <= kinds
    assert (store / "logs" / "attempt-1" / "rank-0.log").exists()


def test_only_agents_of_the_jobs_own_pods_are_let_in(stage: KubeStage) -> None:
    stage.begin()
    slot = stage.add_slot("worker-0", 0)
    other = stage.add_slot("worker-1", 1)
    stage.start_driver()
    good = stage.token(slot)
    assert "UNAUTHENTICATED: the token is not good" in refusal(stage, slot, "not.a.token")
    assert "udience" in refusal(stage, slot, stage.token(slot, audience="megascale/other/uid"))
    assert "not the slot" in refusal(stage, slot, good, node=other.node)
    header, claims, signature = good.split(".")
    assert "good" in refusal(stage, slot, f"{header}.{claims[:-4]}AAAA.{signature}")
    assert refusal(stage, slot, good) == ""
    stage.slots.remove(slot)
    stage.publish()
    eventually(lambda: "not the slot" in refusal(stage, slot, good))


def test_a_killed_driver_is_succeeded_while_training_goes_on(stage: KubeStage) -> None:
    driver = train(stage)
    assert driver.process is not None
    driver.process.kill()
    driver.process.wait()
    step = stage.rank_step()
    eventually(lambda: stage.rank_step() > step + 3)
    stage.start_driver(1)
    status = stage.until(lambda status: status["term"] == 2 and status["jobState"] == "running")
    assert (status["attempt"], status["restarts"], status["pod"]) == (1, 0, "q-driver-1")
    assert status["requests"]["slots"] == 2


def test_of_two_drivers_the_older_ends_and_does_not_come_back(stage: KubeStage) -> None:
    old = train(stage)
    assert old.process is not None
    os.kill(old.process.pid, signal.SIGSTOP)
    stage.start_driver(1)
    stage.until(lambda status: status["term"] == 2 and status["jobState"] == "running")
    os.kill(old.process.pid, signal.SIGCONT)
    # 0: whoever started it does not start it again
    assert old.process.wait(30.0) == 0
    assert "took over" in old.log.read_text()
    again = Program("megascale_operator.driver", old.arguments, old.log)
    again.start()
    assert again.process is not None
    assert again.process.wait(30.0) == 0
    assert "q-driver-1 is this job's driver now" in old.log.read_text()
    assert stage.status()["term"] == 2


def test_an_order_is_obeyed_once_and_answered(stage: KubeStage) -> None:
    train(stage, spares=1)
    spare = stage.add_slot("worker-2", 2)
    stage.start_agent(spare)
    stage.until(lambda status: status["requests"]["slots"] == 3 and status["jobState"] == "running")
    order = {"id": "o-1", "command": "evict", "node": "nobody", "reason": "fan noise", "by": "ann"}

    def give(order: dict[str, str]) -> None:
        stage.api.merge(stage.job_path, {"metadata": {"annotations": {names.COMMAND: json.dumps(order)}}})

    give(order)
    refused = stage.until(lambda status: status.get("lastCommand", {}).get("id") == "o-1")["lastCommand"]
    assert not refused["ok"]
    assert "worker-0" in refused["message"]
    give(order | {"id": "o-2", "node": "worker-1"})
    status = stage.until(lambda status: "q-1-0" in status["requests"]["release"])
    assert status["lastCommand"] == {"id": "o-2", "ok": True, "message": "accepted"}
    assert status["requests"]["avoidNodes"] == ["worker-1"]
    assert "fan noise by ann" in status["lastFault"]
    stage.until(lambda status: status["attempt"] == 2 and status["jobState"] == "running")


def test_a_notice_of_eviction_saves_and_swaps_without_blame(stage: KubeStage) -> None:
    train(stage, spares=1)
    spare = stage.add_slot("worker-2", 2)
    stage.start_agent(spare)
    stage.until(lambda status: status["requests"]["slots"] == 3 and status["jobState"] == "running")
    stage.slots[1].leaving = "evicted: EvictionByEvictionAPI"
    stage.publish()
    status = stage.until(lambda status: status["attempt"] == 2 and status["jobState"] == "running")
    # the pod that is leaving does not count, so one more is wanted
    assert status["requests"]["slots"] == 3
    assert status["requests"]["avoidNodes"] == []
    record = json.loads(stage.map(names.record_map(NAME))["record.json"])["core"]
    assert record.get("blame", {}) == {}
    assert record.get("failures", 0) == 0
    assert "worker-2" in str(record["assignment"])


def test_without_the_api_server_training_goes_on_and_a_rank_is_restarted_afterwards(
    stage: KubeStage, server: Program
) -> None:
    driver = train(stage)
    stage.until(lambda status: status["jobState"] == "running")
    server.signal(signal.SIGSTOP)
    try:
        step = stage.rank_step()
        eventually(lambda: stage.rank_step() > step + 40)
        assert driver.process is not None
        assert driver.process.poll() is None
    finally:
        server.signal(signal.SIGCONT)
    status = stage.until(lambda status: status["jobState"] == "running" and status["step"] > step)
    assert (status["term"], status["restarts"]) == (1, 0)


def test_suspended_resumed_and_deleted(stage: KubeStage) -> None:
    driver = train(stage)
    stage.api.merge(stage.job_path, {"metadata": {"finalizers": [names.FINALIZER]}})
    stage.api.merge(stage.job_path, {"spec": {"suspend": True}})
    status = stage.until(lambda status: status["jobState"] == "suspended")
    assert status["observedGeneration"] == 2
    stage.api.merge(stage.job_path, {"spec": {"suspend": False}})
    stage.until(lambda status: status["jobState"] == "running" and status["attempt"] == 2)
    step = stage.rank_step()
    stage.api.delete(stage.job_path)
    status = stage.until(lambda status: status["state"] == "stopped")
    assert status["reason"] == "the TrainingJob was deleted"
    assert driver.process is not None
    assert driver.process.wait(30.0) == 0
    assert stage.rank_step() >= step


def test_a_line_of_the_kernel_log_replaces_the_node(stage: KubeStage) -> None:
    train(stage, spares=1)
    spare = stage.add_slot("worker-2", 2)
    stage.start_agent(spare)
    stage.until(lambda status: status["requests"]["slots"] == 3 and status["jobState"] == "running")
    with (stage.folder / "work-q-1-0" / "kmsg").open("a") as log:
        log.write("4,7,98374623,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus.\n")
    status = stage.until(lambda status: status["attempt"] == 2 and status["jobState"] == "running")
    assert status["lastFaultNode"] == "worker-1"
    assert status["requests"]["avoidNodes"] == ["worker-1"]


def launched_args(stage: KubeStage, slot: Slot) -> list[str]:
    """The program that the slot's rank was launched with last, by the launch file of the rank itself."""
    launch = json.loads((stage.folder / f"work-{slot.pod}" / "ranks" / f"{slot.node}-0.json").read_text())
    return list(launch["spec"]["spec"]["runtime"]["command"]["args"])


def change_spec(stage: KubeStage, **changes: Any) -> None:
    """A person edits the object; the agents' own file follows, as the operator and the kubelet see to."""
    job = stage.api.merge(stage.job_path, {"spec": changes})
    manifest = json.loads((stage.folder / "job.yaml").read_text())
    (stage.folder / "job.yaml").write_text(json.dumps(manifest | {"spec": job["spec"]}))


def kill_rank(stage: KubeStage, slot: Slot) -> None:
    mark = (
        f"MEGASCALE_RANK_FILE={stage.folder / f'work-{slot.pod}' / 'ranks' / f'{slot.node}-0.rank'}".encode()
    )
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def test_a_changed_spec_without_progress_is_rolled_back_and_the_ranks_run_the_old_one(
    stage: KubeStage,
) -> None:
    driver = train(stage)
    slot = stage.slots[0]
    good = launched_args(stage, slot)
    bad = ["python", "-c", "raise ValueError('the new config is bad')"]
    change_spec(stage, suspend=True, runtime={"command": {"args": bad}})
    stage.until(lambda status: status["jobState"] == "suspended")
    change_spec(stage, suspend=False)
    eventually(lambda: launched_args(stage, slot) == bad)
    step = stage.rank_step()
    stage.until(lambda status: status["jobState"] == "running" and status["attempt"] > 3)
    eventually(lambda: stage.rank_step() > step + 3)
    assert [launched_args(stage, each) for each in stage.slots] == [good, good]
    logs = stage.folder.glob("work-*/logs/attempt-2/rank-*.log")
    assert any("the new config is bad" in log.read_text() for log in logs)

    # A successor keeps the ranks on the old revision, although the object still says the other.
    assert driver.process is not None
    driver.process.kill()
    driver.process.wait()
    stage.start_driver(1)
    status = stage.until(lambda status: status["term"] == 2 and status["jobState"] == "running")
    assert "was rolled back" in str(status["alerts"])
    kill_rank(stage, slot)
    attempt = status["attempt"]
    stage.until(lambda status: status["attempt"] == attempt + 1 and status["jobState"] == "running")
    assert [launched_args(stage, each) for each in stage.slots] == [good, good]
