"""Status document and summary, from a core and rank records that the test makes up."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Action, Cause, FinishState, Milestone, Source
from megascale.core.machine import Core
from megascale.core.state.goodput import GoodputPhase, Ledger
from megascale.core.state.record import Exclusion, Incident, JobState, MilestoneTime, Node, NodeStatus
from megascale.driver import status as module
from megascale.driver.inbox import Inbox
from megascale.driver.links import AgentLink, Links
from megascale.driver.status import StatusBoard, goodput_seconds, incident_document, incidents_of
from megascale.driver.summary import summarise
from megascale.job import TrainingJob, from_mapping
from megascale.rpc import megascale_pb2 as pb

HEAD = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
JOB: TrainingJob = from_mapping(HEAD | {"spec": {"steps": 10, "runtime": {"command": {"args": ["true"]}}}})
INCIDENT = Incident(
    "i-1", Cause.CRASH, "rank 3 was killed", node="n1", rank=3, action=Action.RESTART_IN_PLACE,
    decision="it is the cheapest cure", evidence=["a line"],
    milestones={
        Milestone.FAULT: MilestoneTime(100.0, Source.INJECTED),
        Milestone.DETECTED: MilestoneTime(100.25),
        Milestone.FIRST_STEP: MilestoneTime(101.5),
    },
    outcome="recovered",
)  # fmt: skip
OPEN = Incident(
    "i-2", Cause.HANG, "it hangs",
    milestones={Milestone.FAULT: MilestoneTime(200.0), Milestone.DETECTED: MilestoneTime(203.0)},
)  # fmt: skip


class Stage:
    def __init__(self) -> None:
        self.core, self.links = Core(Policy(nodes=2, steps=10)), Links()
        self.core.record.attempt, self.core.record.term = 4, 2
        self.core.record.state = JobState.RUNNING
        self.inbox = Inbox()
        self.board = StatusBoard(JOB, self.core, self.links, self.inbox)

    def add(
        self, node: str, *ranks: pb.RankStatus, attempt: int = 4, status: NodeStatus = NodeStatus.READY
    ) -> None:
        link = AgentLink(node, "a", "address")
        link.attempt = attempt
        link.report = pb.Report(ranks=ranks)
        self.links.attach(link)
        self.core.live.nodes[node] = Node("a", status, 0.0)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def rank(number: int, **fields: Any) -> pb.RankStatus:
    return pb.RankStatus(rank=number, **{"saved_step": -1, "snapshot_step": -1, **fields})


def test_what_is_not_known_is_none(stage: Stage) -> None:
    stage.inbox.dropped = 3
    found = stage.board.overview()
    assert found["droppedEvents"] == 3
    unknown = ("loss", "stepSeconds", "tokensPerSecond", "mfu", "peakFlops", "goodput", "checkpointStep")
    assert [found[name] for name in unknown] == [None] * len(unknown)
    assert (found["job"], found["state"], found["term"], found["attempt"]) == ("j", "running", 2, 4)
    assert (found["step"], found["steps"], found["restarts"], found["alerts"]) == (0, 10, 0, [])


def test_figures_are_of_the_ranks_of_this_attempt(stage: Stage) -> None:
    stage.add("n0", rank(0, step=5, step_seconds=0.5, flops=4.0, peak_flops=8.0), rank(1, step=4, flops=1.0))
    stage.add("n1", rank(2, step=9, step_seconds=9.0, flops=8.0, peak_flops=8.0), attempt=3)
    stage.add("n2", rank(3, step=6, step_seconds=0.25, flops=2.0, peak_flops=8.0))
    stage.core.live.step = 6
    stage.inbox.dropped = 3
    found = stage.board.overview()
    assert found["droppedEvents"] == 3
    assert (found["step"], found["stepSeconds"], found["peakFlops"]) == (6, 0.25, 8.0)
    assert found["mfu"] == pytest.approx((0.5 + 0.25) / 2)


def test_the_loss_of_the_newest_step_stays_when_its_ranks_are_gone(stage: Stage) -> None:
    stage.add("n0", rank(0, step=5, loss=2.5), rank(1, step=6))
    stage.add("n1", rank(2, step=4, loss=9.0))
    assert stage.board.overview()["loss"] == 2.5
    stage.links.lost("n0")
    stage.links.lost("n1")
    assert stage.board.overview()["loss"] == 2.5
    stage.add("n0", rank(0, step=7, loss=math.nan))
    assert stage.board.overview()["loss"] == "nan"


def test_tokens_per_second_are_counted_within_an_attempt(stage: Stage) -> None:
    board, record = stage.board, stage.core.record
    board.sample(rank(0, tokens=50))  # no step yet
    assert board.overview()["tokensPerSecond"] is None
    record.attempt = 3
    board.sample(rank(0, progress_at=10.0, tokens=100))
    record.attempt = 4
    board.sample(rank(0, progress_at=20.0, tokens=100))
    board.sample(rank(0, progress_at=20.0, tokens=100))
    assert board.overview()["tokensPerSecond"] is None
    board.sample(rank(0, progress_at=22.0, tokens=180))
    board.sample(rank(0, progress_at=24.0, tokens=300))
    assert board.overview()["tokensPerSecond"] == 50.0
    for second in range(100):
        board.sample(rank(0, progress_at=100.0 + second, tokens=1000 + 10 * second))
    assert board.overview()["tokensPerSecond"] == 10.0


def test_alerts_are_the_newest_twenty_with_their_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 123.0)
    for number in range(25):
        stage.board.alert(f"alert {number}")
    alerts = stage.board.overview()["alerts"]
    assert [alert["message"] for alert in alerts] == [f"alert {number}" for number in range(5, 25)]
    assert {alert["time"] for alert in alerts} == {123.0}


def test_nodes_that_train_come_first_and_lost_ones_not_at_all(stage: Stage) -> None:
    stage.core.record.assignment = ("n2", "n1")
    stage.add("n0", rank(9), attempt=0)
    stage.add(
        "n1",
        rank(0, pid=7, step=5, phase="forward", step_seconds=0.5, flops=2.0, peak_flops=8.0, snapshot_step=4),
    )
    stage.add("n2", rank(1, step=5), attempt=3)
    stage.add("n3", status=NodeStatus.GONE)
    stage.links.lost("n2")
    nodes = stage.board.document()["nodes"]
    assert [(node["name"], node["role"], node["status"]) for node in nodes] == [
        ("n1", "training", "ready"), ("n2", "training", "ready"), ("n0", "spare", "ready"),
    ]  # fmt: skip
    assert nodes[0]["ranks"] == [
        {
            "rank": 0,
            "pid": 7,
            "step": 5,
            "phase": "forward",
            "stepSeconds": 0.5,
            "snapshotStep": 4,
            "mfu": 0.25,
        }
    ]
    assert nodes[1]["ranks"] == nodes[2]["ranks"] == []
    stage.core.record.state = JobState.SUSPENDED
    assert {node["role"] for node in stage.board.document()["nodes"]} == {"spare"}


def test_a_rank_without_snapshot_or_peak_says_so(stage: Stage) -> None:
    stage.core.record.assignment = ("n0",)
    stage.add("n0", rank(0, flops=2.0), rank(1, snapshot_step=0))
    first, second = stage.board.document()["nodes"][0]["ranks"]
    assert (first["snapshotStep"], first["mfu"], second["snapshotStep"]) == (None, None, 0)


def test_incidents_and_exclusions_are_listed(stage: Stage) -> None:
    record = stage.core.record
    record.incidents, record.incident = [INCIDENT], OPEN
    record.excluded = {"n9": Exclusion("fan noise", "i-0", 1.0)}
    record.commits = [Commit(8, 4), Commit(5, 3)]
    record.restarts = {Cause.CRASH: 2, Cause.HANG: 1}
    document = stage.board.document()
    assert incidents_of(stage.core) == [INCIDENT, OPEN]
    assert [one["id"] for one in document["incidents"]] == ["i-1", "i-2"]
    assert (document["excluded"], document["checkpointStep"], document["restarts"]) == (
        {"n9": "fan noise"},
        8,
        3,
    )
    json.dumps(document)


def test_an_incident_has_its_durations() -> None:
    found = incident_document(INCIDENT)
    assert (found["detectionSeconds"], found["recoverySeconds"], found["outcome"]) == (0.25, 1.5, "recovered")
    assert found["milestones"]["fault"] == {"at": 100.0, "source": "injected"}
    assert (found["cause"], found["action"], found["node"], found["rank"]) == (
        "crash",
        "restart_in_place",
        "n1",
        3,
    )
    assert (found["reason"], found["decision"], found["evidence"]) == (
        "rank 3 was killed", "it is the cheapest cure", ["a line"],
    )  # fmt: skip
    still = incident_document(OPEN)
    assert (still["detectionSeconds"], still["recoverySeconds"], still["outcome"]) == (3.0, None, "open")


def test_the_running_phase_of_the_ledger_is_charged_until_now(stage: Stage) -> None:
    record = stage.core.record
    assert goodput_seconds(stage.core, 50.0) == {}
    record.ledger = Ledger()
    record.ledger.start(100.0)
    record.ledger.switch(GoodputPhase.PRODUCTIVE, 110.0)
    seconds = goodput_seconds(stage.core, 140.0)
    assert seconds[GoodputPhase.PRODUCTIVE] == 30.0
    assert sum(seconds.values()) == 40.0
    assert goodput_seconds(stage.core, 105.0).get(GoodputPhase.PRODUCTIVE, 0.0) == 0.0
    record.state = JobState.FINISHED
    assert goodput_seconds(stage.core, 140.0).get(GoodputPhase.PRODUCTIVE, 0.0) == 0.0


def test_goodput_is_the_productive_share(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 140.0)
    stage.core.record.ledger.start(100.0)
    stage.core.record.ledger.switch(GoodputPhase.PRODUCTIVE, 110.0)
    stage.inbox.dropped = 3
    found = stage.board.overview()
    assert found["droppedEvents"] == 3
    assert found["goodput"] == 0.75
    assert found["goodputSeconds"]["productive"] == 30.0


def test_seconds_are_rounded_to_milliseconds_and_durations_of_incidents_to_tenths(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 140.0 + 0.12345678
    monkeypatch.setattr(module.time, "time", lambda: now)
    stage.core.record.ledger.start(100.0)
    stage.core.record.ledger.switch(GoodputPhase.PRODUCTIVE, 110.0)
    assert stage.board.overview()["goodputSeconds"]["productive"] == 30.123
    summary = summarise(JOB, stage.core, {}, now)
    assert (summary["goodputSeconds"]["productive"], summary["wallSeconds"]) == (30.123, 40.123)
    stages = {
        Milestone.FAULT: MilestoneTime(0.0),
        Milestone.DETECTED: MilestoneTime(0.12345678),
        Milestone.FIRST_STEP: MilestoneTime(1.12345678),
    }
    found = incident_document(dataclasses.replace(INCIDENT, milestones=stages))
    assert (found["detectionSeconds"], found["recoverySeconds"]) == (0.1235, 1.1235)


def test_a_finished_job_keeps_its_best_step(stage: Stage) -> None:
    record = stage.core.record
    record.best_step, stage.core.live.step = 9, 3
    assert stage.board.overview()["step"] == 3
    record.state, record.finish_state, record.finish_reason = (
        JobState.FINISHED,
        FinishState.FAILED,
        "no nodes",
    )
    stage.inbox.dropped = 3
    found = stage.board.overview()
    assert found["droppedEvents"] == 3
    assert (found["step"], found["state"], found["reason"]) == (9, "failed", "no nodes")


STEPS = {
    8: {"step": 8, "loss": 2.0, "stepSeconds": 0.5, "tokens": 800, "flops": 4.0, "peakFlops": 8.0},
    9: {"step": 9, "loss": 1.5, "stepSeconds": 1.5, "tokens": 900, "flops": 2.0, "peakFlops": 8.0},
}


def test_a_summary_is_of_the_steps_that_count(stage: Stage) -> None:
    record = stage.core.record
    record.ledger.start(100.0)
    record.ledger.switch(GoodputPhase.PRODUCTIVE, 110.0)
    record.commits, record.incidents = [Commit(5, 3), Commit(8, 4)], [INCIDENT]
    record.restarts = {Cause.CRASH: 2}
    found = summarise(JOB, stage.core, STEPS, 140.0)
    assert (found["job"], found["state"], found["step"], found["steps"]) == ("j", "running", 9, 10)
    assert (found["loss"], found["restarts"], found["checkpointStep"]) == (1.5, 2, 8)
    assert (found["goodput"], found["wallSeconds"]) == (0.75, 40.0)
    assert found["goodputSeconds"]["productive"] == 30.0
    assert found["mfu"] == pytest.approx(0.375)
    assert found["tokensPerSecond"] == pytest.approx(100.0 * 2 / 2.0)
    assert [one["id"] for one in found["incidents"]] == ["i-1"]


def test_a_summary_without_steps_has_no_rates(stage: Stage) -> None:
    found = summarise(JOB, stage.core, {}, 140.0)
    assert (found["step"], found["loss"], found["mfu"], found["tokensPerSecond"]) == (0, None, None, None)
    assert (found["goodput"], found["checkpointStep"], found["reason"]) == (None, None, "")
    no_peak = {1: {"step": 1, "loss": 1.0, "stepSeconds": 0.0, "tokens": 1, "flops": 1.0, "peakFlops": 0.0}}
    assert summarise(JOB, stage.core, no_peak, 140.0)["mfu"] is None


def test_time_beyond_the_bound_of_a_step_is_not_productive() -> None:
    """Steps of 2 s, the last one at 100.0: a hang is suspected after 3 of them and 10 s."""
    core = Core(Policy(nodes=2, steps=10))
    core.record.state = JobState.RUNNING
    core.record.ledger = Ledger(phase=GoodputPhase.PRODUCTIVE, since=90.0, started_at=1.0)
    core.record.ledger.seconds = {GoodputPhase.PRODUCTIVE: 40.0, GoodputPhase.DETECTION: 1.0}
    core.live.progress_at = 100.0
    assert goodput_seconds(core, 130.0) == {"productive": 80.0, "detection": 1.0}  # nothing is learnt yet
    core.record.clock.durations_s = [2.0] * 8
    assert goodput_seconds(core, 116.0) == {"productive": 66.0, "detection": 1.0}
    assert goodput_seconds(core, 130.0) == {"productive": 66.0, "detection": 15.0}
    core.record.ledger.phase = GoodputPhase.RECOVERY
    assert goodput_seconds(core, 130.0) == {"productive": 40.0, "detection": 1.0, "recovery": 40.0}
