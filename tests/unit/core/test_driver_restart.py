from __future__ import annotations

import json

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.core.state.record import JobState, NodeStatus


def test_training_goes_on_when_the_driver_is_replaced(running):
    job = running(2, spare_nodes=1)
    job.train(10).said.clear()
    job.driver_restarts(after_s=120.0)
    assert job.said == []
    job.join("n-0", "n-1", attempt=1).join("n-2").train(20)
    assert job.state is JobState.RUNNING
    assert job.said == []
    assert job.record.ledger.phase == "productive"


def test_spares_that_reconnect_are_not_asked_for_again(running):
    job = running(2, spare_nodes=2)
    job.driver_restarts(after_s=5.0).said.clear()
    job.join("n-0", "n-1", attempt=1).join("n-2", "n-3").train(30)
    assert not job.heard(fx.Acquire)


def test_spare_that_does_not_come_back_is_replaced(running):
    job = running(2, spare_nodes=1)
    job.silent.add("n-2")
    job.driver_restarts().said.clear()
    job.join("n-0", "n-1", attempt=1).train(30)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]


def test_node_that_died_meanwhile_is_lost_after_the_silence_bound(running):
    job = running(2, spare_nodes=1, silence_s=15.0, reconnect_grace_s=20.0, hang_margin_s=100.0)
    job.driver_restarts(after_s=300.0)
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN
    job.silent.add("n-1")
    job.join("n-0", attempt=1).join("n-2").wait(19.0)
    assert job.state is JobState.RUNNING
    job.wait(2.0)
    assert job.state is JobState.STOPPING
    assert job.incident.node == "n-1"


def test_fleet_can_tell_at_once_that_an_unknown_node_is_gone(running):
    job = running(2)
    job.driver_restarts().goes("n-1")
    assert job.state is JobState.STOPPING


def test_agent_that_lost_its_ranks_meanwhile_is_noticed(running):
    job = running(2)
    job.driver_restarts().join("n-0", attempt=1).agent_restarts("n-1")
    assert job.state is JobState.STOPPING


@pytest.mark.parametrize("downtime_s", [1.0, 1000.0])
def test_stall_of_the_driver_is_no_stall_of_the_job(running, downtime_s):
    job = running(2)
    job.train(10).driver_restarts(after_s=downtime_s)
    job.join("n-0", "n-1", attempt=1).wait(8.0)
    assert job.state is JobState.RUNNING


def test_hang_that_began_while_no_driver_was_there_is_found(running):
    job = running(2)
    job.train(10).driver_restarts(after_s=60.0)
    job.join("n-0", "n-1", attempt=1).wait(20.0)
    assert job.state is JobState.DIAGNOSING


def test_job_that_was_rolled_back_makes_progress_below_its_best_step(running):
    job = running(2)
    job.train(100).commit(20).exit(1, sig=9).recovers().train(10)
    assert job.core.live.step < job.record.best_step
    job.driver_restarts().join("n-0", "n-1", attempt=2)
    job.core.live.step = 20
    job.train(60)
    assert job.state is JobState.RUNNING


def test_reconnecting_nodes_are_waited_for_before_the_job_shrinks(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=60.0)
    job.exit(0, sig=9).goes("n-2").done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    job.driver_restarts(after_s=500.0).join("n-0", "n-1", attempt=1)
    assert job.state is JobState.ASSEMBLING
    job.join("n-3")
    assert len(job.record.assignment) == 3


def test_hang_is_found_even_if_no_rank_reports_again(running):
    job = running(2, startup_s=100.0, silence_s=1e6)
    job.driver_restarts().wait(120.0, beating=False)
    assert job.state is not JobState.RUNNING


def test_pending_effects_come_again_under_their_ids(running):
    job = running(70)
    job.exit(3, sig=9)
    (kill,) = job.heard(fx.Kill)
    job.driver_restarts()
    assert job.heard(fx.Kill) == [kill]
    job.join(*[f"n-{i}" for i in range(70)]).done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    job.driver_restarts()
    assert job.heard(fx.Launch) == [launch]


def test_kill_is_given_its_full_time_again(running):
    job = running(2, kill_s=10.0, reconnect_grace_s=10.0)
    job.exit(1, sig=9).driver_restarts(after_s=100.0)
    assert job.state is JobState.STOPPING
    job.join("n-0", "n-1", attempt=1).done(fx.Kill)
    assert job.state is JobState.LAUNCHING


def test_launch_goes_on_when_the_driver_is_replaced(running):
    job = running(2, startup_s=100.0)
    job.exit(1, sig=9).done(fx.Kill).driver_restarts(after_s=200.0)
    job.join("n-0", "n-1", attempt=2).launches()
    assert job.state is JobState.RUNNING
    assert job.record.attempt == 2


def test_save_before_leaving_goes_on_when_the_driver_is_replaced(running):
    job = running(2)
    job.command("stop").driver_restarts(after_s=500.0)
    assert job.state is JobState.SAVING
    job.join("n-0", "n-1", attempt=1).all_exit(76).done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_waiting_for_nodes_goes_on_when_the_driver_is_replaced(start):
    job = start(2)
    job.join("n-0").driver_restarts(after_s=5.0)
    assert job.state is JobState.ASSEMBLING
    job.join("n-0", "n-1")
    assert job.state is JobState.LAUNCHING


def test_diagnosis_goes_on_when_the_driver_is_replaced(running):
    job = running(2, flap_tolerance_s=30.0)
    job.train(5).wait(14.0)
    assert job.state is JobState.DIAGNOSING
    job.driver_restarts(after_s=100.0).join("n-0", "n-1", attempt=1).wait(60.0)
    assert job.state is JobState.LAUNCHING
    assert job.incident.cause == "hang"


def test_evidence_that_a_driver_had_is_collected_again_by_its_successor(running):
    job = running(3, flap_tolerance_s=60.0)
    job.train(5).wait(14.0)
    assert job.state is JobState.DIAGNOSING
    job.done(fx.CollectEvidence)
    job.tell(ev.Evidence(job.heard(fx.CollectEvidence)[0].effect_id, "n-0", (ev.RankEvidence(0, "S"),)))
    job.driver_restarts(after_s=5.0).join("n-0", "n-1", "n-2", attempt=1)
    (again,) = job.heard(fx.CollectEvidence)
    assert again.nodes == ("n-0", "n-1", "n-2")
    for rank, state in enumerate(("S", "T", "S")):
        ranks = (ev.RankEvidence(rank, state, step=job.core.live.step, phase="forward"),)
        job.tell(ev.Evidence(again.effect_id, f"n-{rank}", ranks))
    assert job.state is JobState.STOPPING
    assert job.incident.node == "n-1"


def test_evidence_that_is_asked_for_is_not_asked_for_twice(running):
    job = running(3).train(5).wait(14.0)
    (asked,) = job.heard(fx.CollectEvidence)
    job.driver_restarts()
    assert job.heard(fx.CollectEvidence) == [asked]


def test_a_successor_counts_no_stall_twice(running):
    job = running(2).train(20).train(20, stall_seconds=10.0)
    seconds = job.record.ledger.seconds["checkpointStall"]
    assert (seconds, job.record.saves.stall_s) == (10.0, 10.0)
    job.driver_restarts(after_s=1.0).join("n-0", "n-1", attempt=1).train(3, stall_seconds=10.0)
    assert job.record.saves.stall_s == 10.0
    assert job.record.ledger.seconds["checkpointStall"] == 10.0
    job.train(3, stall_seconds=12.0)
    assert job.record.saves.stall_s == 12.0


def test_a_record_without_the_stalls_of_the_attempt_begins_with_the_next_report(running):
    job = running(2).train(20).train(20, stall_seconds=10.0)
    snapshot = job.core.snapshot()
    snapshot["saves"] = {"stall_s": 10.0}  # as an earlier version wrote it
    job.core = Core.restore(job.core.policy, snapshot)
    job.driver_starts().join("n-0", "n-1", attempt=1).train(3, stall_seconds=10.0)
    assert job.record.saves.stall_s == 10.0
    job.train(1, stall_seconds=11.0)
    assert job.record.saves.stall_s == 11.0


def test_suspension_set_or_lifted_in_the_manifest_while_no_driver_ran(running):
    job = running(1)
    running_policy = job.core.policy
    suspended = type(running_policy)(nodes=1, min_nodes=1, steps=1000, suspend=True)
    job.core = Core.restore(suspended, job.core.snapshot())
    job.driver_starts().join("n-0", attempt=1)
    job.all_exit(76).done(fx.Kill)
    assert job.state is JobState.SUSPENDED
    job.core = Core.restore(running_policy, job.core.snapshot())
    job.driver_starts().join("n-0")
    assert job.state is JobState.LAUNCHING


def test_suspension_by_a_person_outlives_the_driver(running):
    job = running(1)
    job.command("suspend").all_exit(76).done(fx.Kill).driver_restarts().join("n-0")
    assert job.state is JobState.SUSPENDED


def test_snapshot_comes_back_equal(running):
    job = running(3, spare_nodes=1)
    job.train(5).commit(5).exit(1, sig=9).recovers().command("evict", "n-0")
    snapshot = job.core.snapshot()
    restored = Core.restore(job.core.policy, json.loads(json.dumps(snapshot)))
    assert restored.record == job.record
    assert restored.snapshot() != {}
    assert restored.record.lineage == {1: None, 2: Commit(5, 1)}


def test_record_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="JobState"):
        Core.restore(Policy(), {"state": 3})
