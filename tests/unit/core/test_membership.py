from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.state.record import JobState, NodeStatus


def test_silent_node_is_suspected_probed_and_replaced(running):
    job = running(2, spare_nodes=1, silence_s=15.0)
    job.silent.add("n-1")
    job.wait(10.5)
    assert job.live_nodes["n-1"].status is NodeStatus.SUSPECT
    assert [p.node for p in job.heard(fx.Probe)] == ["n-1"]
    job.wait(5.0)
    assert job.state is JobState.STOPPING
    assert (job.incident.cause, job.incident.node) == ("node_lost", "n-1")
    assert job.incident.milestones["fault"].source == "estimated"
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")


@pytest.mark.parametrize(
    ("healthy", "stage"), [(False, JobState.STOPPING), (True, JobState.RUNNING), (None, JobState.RUNNING)]
)
def test_only_a_failed_probe_shortens_the_wait(running, healthy, stage):
    job = running(2, silence_s=15.0)
    job.silent.add("n-1")
    job.wait(10.5)
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], "n-1", healthy, "ping"))
    assert job.state is stage
    assert not job.pending(fx.Probe)


def test_suspect_that_beats_again_is_ready(running):
    job = running(2)
    job.silent.add("n-1")
    job.wait(10.5)
    job.heartbeat("n-1")
    assert job.live_nodes["n-1"].status is NodeStatus.READY


def test_unknown_node_gets_no_ranks(running):
    job = running(2, spare_nodes=1)
    job.driver_restarts()
    assert job.live_nodes["n-2"].status is NodeStatus.UNKNOWN
    job.join("n-0", "n-1", attempt=1)
    job.exit(1, sig=9)
    assert "n-2" not in (job.done(fx.Kill).record.assignment)


def test_lost_node_that_comes_back_is_turned_away_and_another_asked_for(running):
    job = running(2, spare_nodes=1)
    job.goes("n-1").done(fx.Kill).launches()
    job.heard(fx.Release)
    job.agent_restarts("n-1")
    assert [r.node for r in job.heard(fx.Release)] == ["n-1"]
    assert "n-1" not in job.record.assignment
    assert job.live_nodes["n-1"].status is NodeStatus.GONE


def test_node_that_passed_the_checks_may_serve_again(running):
    job = running(2, spare_nodes=1)
    job.goes("n-1").recovers()
    assert "n-1" in job.record.excluded
    job.incarnations["n-1"] = "n-1/2"
    job.join("n-1", checked=True)
    assert "n-1" not in job.record.excluded
    job.goes("n-0").done(fx.Kill)
    assert set(job.record.assignment) == {"n-1", "n-2"}


def test_excluded_node_that_still_beats_is_let_go_once(running):
    job = running(2, spare_nodes=1)
    job.silent.add("n-1")
    job.wait(16.0).done(fx.Kill).launches()
    for _ in range(3):
        job.heartbeat("n-1")
        job.now += 2.0
    assert len(job.heard(fx.Release)) == 1


def test_restarted_agent_has_lost_its_ranks(running):
    job = running(2)
    job.agent_restarts("n-1")
    assert job.state is JobState.STOPPING
    assert job.incident.action == "restart_in_place"


def test_reconnecting_agent_changes_nothing(running):
    job = running(2)
    job.join("n-1", attempt=1)
    assert job.state is JobState.RUNNING


def test_reports_of_an_earlier_incarnation_are_void(running):
    job = running(2)
    job.incarnations["n-1"] = "n-1/0"
    job.goes("n-1")
    assert job.state is JobState.RUNNING


def test_fleet_may_not_know_the_incarnation(running):
    job = running(2)
    job.tell(ev.NodeGone("n-1", "", "machine terminated", at=job.now))
    assert job.state is JobState.STOPPING


def test_lost_spare_is_replaced_without_an_incident(running):
    job = running(2, spare_nodes=1)
    job.heard(fx.Acquire)
    job.goes("n-2")
    assert job.state is JobState.RUNNING
    assert [a.count for a in job.heard(fx.Acquire)] == [1]
    assert not job.record.incidents
    assert job.record.incident is None


def test_spare_found_dead_on_promotion_is_replaced_too(running):
    job = running(2, spare_nodes=2)
    job.goes("n-1").done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    job.goes("n-2").done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-3")
    assert set(job.record.excluded) == {"n-1", "n-2"}


def test_quiet_promise_holds_off_silence_and_ends(running):
    job = running(2, silence_s=15.0)
    job.tell(
        ev.JobReport(
            1, ev.RankProgress(rank=0, step=2, progress_at=job.now, step_seconds=1.0), job.now + 100.0
        )
    )
    job.wait(99.0, beating=False)
    assert job.state is JobState.RUNNING
    job.wait(20.0, beating=False)
    assert job.state is JobState.DIAGNOSING or job.incident.cause == "node_lost"


def test_absent_node_is_lost_although_the_job_reports(running):
    job = running(2, silence_s=15.0, spare_nodes=1)
    progress = ev.RankProgress(rank=0, step=2, progress_at=job.now, step_seconds=1.0)
    job.tell(ev.JobReport(1, progress, job.now + 100.0, ("n-1",)))
    job.wait(16.0, beating=False)
    assert job.incident.node == "n-1"


def test_node_named_absent_once_is_heard_again_by_a_later_report(running):
    job = running(2, silence_s=15.0)
    progress = ev.RankProgress(rank=0, step=2, progress_at=job.now, step_seconds=1.0)
    job.tell(ev.JobReport(1, progress, job.now + 5.0, ("n-1",)))
    job.now += 5.0
    job.tell(ev.JobReport(1, progress, job.now + 100.0))
    job.wait(50.0, beating=False)
    assert job.state is JobState.RUNNING


def test_watch_list_does_not_grow_with_reconnects(running):
    job = running(2)
    for _ in range(50):
        job.join("n-1", attempt=1)
        job.train(3)
    assert len(job.core.live.silence) < 20


def test_node_that_dies_before_its_hello_is_asked_for_again(start):
    job = start(1)
    job.done(fx.Acquire)
    job.tell(ev.NodeGone("n-9", "", "image not found"))
    assert job.heard(fx.Acquire)
    job.wait(6.0)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]


def test_driver_that_is_cut_off_does_not_believe_that_all_are_lost(running):
    job = running(8, silence_s=15.0).train(5)
    job.silent = set(job.live_nodes)
    job.wait(60.0)
    assert job.state is JobState.RUNNING
    assert sum("cut off" in page.reason for page in job.heard(fx.Page)) == 1
    job.silent.clear()
    job.heartbeats().train(30)
    assert job.state is JobState.RUNNING
    assert not job.record.restarts


def test_silence_of_all_is_believed_in_the_end(running):
    job = running(8, silence_s=15.0).train(5)
    job.silent = set(job.live_nodes)
    job.wait(80.0)
    assert job.state is JobState.ASSEMBLING
    assert not job.record.excluded


def test_few_silent_nodes_are_believed_at_once(running):
    job = running(8, silence_s=15.0, spare_nodes=3)
    job.silent = {"n-1", "n-2", "n-3"}
    job.wait(16.0)
    assert job.state in (JobState.STOPPING, JobState.LAUNCHING)
    assert job.record.incidents or job.record.incident


def test_nodes_gone_long_ago_are_forgotten(running):
    job = running(2, spare_nodes=1)
    job.goes("n-2").train(10)
    job.live_nodes["n-2"].heard_until -= 5000.0
    job.exit(0, sig=9).done(fx.Kill)
    assert "n-2" not in job.live_nodes


def test_silence_in_shadow_mode_only_watches(running):
    job = running(2, spare_nodes=1, shadow=("silence",))
    job.silent.add("n-1")
    job.train(60)
    assert job.state is JobState.RUNNING
    assert job.record.shadowed["silence"] == 1
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")


def test_threshold_changed_while_running_counts_at_once(running):
    job = running(2, silence_s=1000.0)
    job.tell(ev.SpecChanged(Policy(nodes=2, min_nodes=2, steps=1000, silence_s=15.0)))
    job.heartbeats()
    job.silent.add("n-1")
    job.now += 1000.0
    job.tell(ev.Tick())
    assert job.state is not JobState.RUNNING
