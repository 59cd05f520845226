"""Wrong numbers and slow nodes: when they are confirmed, what is distrusted, and what people are told."""

from __future__ import annotations

import math
import random

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState

DAY_S = 86400.0


def trained(running, nodes=2, **policy):
    job = running(nodes, **policy)
    for step in range(100):
        job.train(1, loss=3.0 + 0.01 * (step % 5), grad_norm=1.0 + 0.01 * (step % 3))
    return job


def test_nan_is_confirmed_by_the_second_step(running):
    job = trained(running).train(1, loss=math.nan)
    assert job.state is JobState.RUNNING
    job.train(1, loss=math.nan)
    assert job.incident.reason == "loss is nan at step 102, for 2 steps"
    assert job.incident.milestones["fault"].at == job.now
    assert job.record.anomaly_step == 102
    assert job.record.tainted == {1: 101}


def test_an_anomaly_that_changes_its_kind_is_counted_anew(running):
    job = trained(running).train(1, loss=math.nan).train(1, loss=20.0).train(1, loss=math.nan)
    assert job.state is JobState.RUNNING
    job.train(1, loss=math.nan)
    assert job.state is JobState.STOPPING


def test_a_step_is_judged_once_whoever_reports_it(running):
    job = trained(running)
    job.now += 1.0
    for _ in range(3):
        job.heartbeat("n-0", "n-1", step=102, loss=math.nan)
    assert job.state is JobState.RUNNING
    job.now += 1.0
    job.heartbeat("n-0", step=103)
    job.heartbeat("n-1", step=103, loss=math.nan)
    assert job.state is JobState.STOPPING


@pytest.mark.parametrize(("steps_after_load", "distrusted"), [(10, [Commit(90, 1)]), (11, [])])
def test_a_checkpoint_loaded_shortly_before_is_distrusted(running, steps_after_load, distrusted):
    job = (
        trained(running, distrust_steps=10).commit(80).commit(90).exit(0, sig=9).done(fx.Kill).done(fx.Launch)
    )
    job.train(steps_after_load - 1, loss=3.0).train(2, loss=math.nan)
    assert job.record.anomaly_step == 90 + steps_after_load
    assert job.record.distrusted == distrusted


def test_wrong_numbers_from_scratch_distrust_nothing(running):
    job = trained(running, distrust_steps=500).train(2, loss=math.nan)
    assert job.record.distrusted == []


@pytest.mark.parametrize(("apart", "again"), [(5, True), (6, False)])
def test_a_jump_near_the_step_of_the_last_is_the_same(running, apart, again):
    job = trained(running, distrust_steps=0).commit(80)
    job.record.anomaly_step = 102 - apart
    job.train(5, loss=50.0)
    assert (job.state is JobState.RUNNING) == again
    assert ("; at the same step as before" in job.incident.reason) == again
    assert len(job.heard(fx.Page)) == again


def test_a_spike_is_only_told_once(running):
    job = trained(running).train(4, loss=4.5)
    assert not job.record.incidents
    job.train(4, loss=4.5)
    (told,) = job.record.incidents
    assert told.decision == "training goes on: code or data may be behind it"
    assert not job.heard(fx.Page)


def test_roll_backs_of_a_day_are_counted_and_the_third_pages(running):
    job = trained(running, nodes=4, model_nodes=2, distrust_steps=0).commit(80)
    job.record.roll_backs = [job.now - DAY_S + 50.0, job.now - 100.0]
    job.train(2, loss=math.nan)
    (page,) = job.heard(fx.Page)
    assert page.reason.startswith(
        "wrong numbers 3 times within a day; replay the steps on 2 groups of 2 nodes"
    )
    assert page.incident == job.incident.id
    assert len(job.record.roll_backs) == 3


def test_roll_backs_of_another_day_are_forgotten(running):
    job = trained(running, distrust_steps=0).commit(80)
    job.record.roll_backs = [job.now + 2.0 - DAY_S, job.now - 100.0]
    job.train(2, loss=math.nan)
    assert not job.heard(fx.Page)
    assert len(job.record.roll_backs) == 2


@pytest.mark.parametrize(
    ("nodes", "model_nodes", "told"), [(4, 4, False), (4, 3, False), (4, 2, True), (4, 1, True)]
)
def test_a_replay_is_proposed_where_the_layout_allows_one(running, nodes, model_nodes, told):
    job = trained(running, nodes, model_nodes=model_nodes, distrust_steps=0).commit(80)
    job.record.anomaly_step = 102
    job.train(2, loss=math.nan)
    assert any("replay the steps" in line for line in job.incident.evidence) == told


def checked(running, **policy):
    job = trained(running, spare_nodes=2, check_numbers=True, distrust_steps=5, **policy)
    return job.commit(90).train(2, loss=math.nan).done(fx.Kill)


def test_the_check_asks_the_nodes_that_are_there_and_has_its_time(running):
    job = trained(running, spare_nodes=1, check_numbers=True).commit(90).train(2, loss=math.nan).goes("n-0")
    job.done(fx.Kill)
    (check,) = job.heard(fx.CheckNodes)
    assert (check.nodes, check.deadline_s) == (("n-1",), 300.0)
    assert check.reason == job.incident.reason
    assert job.record.deadlines["check"] == job.now + 300.0
    assert job.record.ledger.phase == "diagnosis"


def test_no_check_without_wrong_numbers_or_where_it_is_off(running):
    job = running(2, check_numbers=True).exit(0, sig=9).done(fx.Kill)
    assert job.state is JobState.LAUNCHING
    job = trained(running).train(2, loss=math.nan).done(fx.Kill)
    assert not job.heard(fx.CheckNodes)


def test_the_convicted_go_each_with_what_was_wrong(running):
    job = checked(running)
    job.heard(fx.Exclude)
    job.done(fx.CheckNodes, convicted={"n-1": "rank 1 differs", "n-0": "rank 0 differs", "n-7": "not asked"})
    reasons = {out.node: out.reason for out in job.heard(fx.Exclude)}
    assert reasons == {
        "n-1": "n-1 computes wrong numbers: rank 1 differs",
        "n-0": "n-0 computes wrong numbers: rank 0 differs; loss is nan at step 102, for 2 steps",
    }
    assert job.record.roll_backs == []
    assert job.incident.decision == "node-checks is sure: no restart cures it"
    assert job.record.ledger.phase == "recovery"
    assert job.record.assignment == ("n-2", "n-3")


def test_a_check_that_finds_nothing_says_so(running):
    job = checked(running).done(fx.CheckNodes, convicted={"n-7": "not asked"})
    assert "the checks found no node that computes wrong numbers" in job.incident.evidence
    assert (job.state, job.record.ledger.phase) == (JobState.LAUNCHING, "recovery")
    assert len(job.record.roll_backs) == 1


def times(job, count, slow, by=1.2):
    draw = random.Random(7)
    for _ in range(count):
        job.train(1)
        found = [draw.gauss(1.0, 0.005) * (by if rank in slow else 1.0) for rank in range(job.record.ranks)]
        job.tell(ev.SegmentTimes(job.record.attempt, job.core.live.step, tuple(found)))
    return job


def verdict(job, node, healthy, detail="gemm 11% slow"):
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], node, healthy, detail))
    return job


def test_a_straggler_is_told_with_its_rank_and_what_the_probe_found(running):
    job = times(running(16, spare_nodes=1), 80, {5})
    (probe,) = job.heard(fx.Probe)
    assert (probe.node, probe.deadline_s) == ("n-5", 5.0)
    verdict(job, "n-5", False)
    incident = job.incident
    assert (incident.cause, incident.node, incident.rank) == ("straggler", "n-5", 5)
    assert incident.reason == probe.reason
    assert incident.evidence == ["probe: gemm 11% slow"]
    assert incident.decision == "slower than its peers, and the probe confirmed it"
    assert incident.milestones["fault"].at == job.now


def test_every_verdict_on_a_straggler_is_in_the_history(running):
    told = []
    for healthy, policy in ((True, {}), (None, {}), (False, {}), (False, {"max_nodes_per_hour": 0})):
        job = verdict(times(running(16, **policy), 80, {5}), "n-5", healthy, "")
        told.append((job.incident.action, job.incident.decision))
        assert job.incident.evidence == []
        assert job.state is JobState.RUNNING
    assert told == [
        ("none", "the probe found the node sound"),
        ("none", "the probe could not tell; a person decides"),
        ("none", "no spare is there: a slow node is better than none"),
        ("none", "remediation.maxNodesPerHour = 0 is reached"),
    ]


def test_a_straggler_that_may_not_be_replaced_pages(running):
    job = verdict(times(running(16, spare_nodes=1, max_nodes_per_hour=0), 80, {5}), "n-5", False)
    (page,) = job.heard(fx.Page)
    assert page.reason == "n-5 is slow but not replaced: remediation.maxNodesPerHour = 0 is reached"
    assert page.incident == job.incident.id


def test_a_verdict_on_ranks_that_are_stopped_is_void(running):
    job = times(running(16, spare_nodes=1), 80, {5})
    job.exit(0, sig=9)
    before = job.record.next_incident
    verdict(job, "n-5", False)
    assert job.record.next_incident == before


def test_stragglers_are_sought_among_the_ranks_of_their_stage(running):
    job = times(running(16, pipeline=2, spare_nodes=1), 80, set(range(8)))
    assert not job.heard(fx.Probe)
    job = times(running(8, ranks_per_node=2, spare_nodes=1), 80, {10, 11})
    assert [probe.node for probe in job.heard(fx.Probe)] == ["n-5"]


def test_times_that_are_not_known_suspect_nobody(running):
    job = running(16, spare_nodes=1)
    for _ in range(80):
        job.train(1)
        job.tell(ev.SegmentTimes(1, job.core.live.step, (0.0,) + (1.0,) * 15))
    assert not job.heard(fx.Probe)


def test_a_milder_threshold_counts_at_once(running):
    job = times(running(16, spare_nodes=1, straggler_slowdown=0.5), 80, {5})
    assert not job.heard(fx.Probe)


def test_a_driver_that_takes_over_checks_only_the_nodes_that_it_knows(running):
    job = trained(running, spare_nodes=1, check_numbers=True).commit(90).train(2, loss=math.nan).goes("n-0")
    job.driver_restarts().join("n-1", attempt=1).done(fx.Kill)
    assert job.heard(fx.CheckNodes)[-1].nodes == ("n-1",)
