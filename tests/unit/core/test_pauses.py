"""What the driver did not see is held against nobody: pauses of its process, and events that wait."""

from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState, NodeStatus


def freeze(job, gap_s):
    """The driver does not run for a while; what the agents sent comes after."""
    job.now += gap_s
    job.tell(ev.DriverPaused(gap_s))
    return job


def test_silence_during_a_pause_is_held_against_nobody(running):
    job = running(3, spare_nodes=1, silence_s=15.0, hang_margin_s=1e4)
    job.train(10).said.clear()
    freeze(job, 40.0).wait(14.0, beating=False)
    assert not job.said or {type(effect) for effect in job.said} == {fx.Probe}
    job.heartbeats().train(5)
    assert job.state is JobState.RUNNING
    assert {node.status for node in job.live_nodes.values()} == {NodeStatus.READY}
    assert job.record.incidents == []


def test_a_node_that_stays_silent_after_a_pause_is_lost(running):
    job = running(3, spare_nodes=1, silence_s=15.0, hang_margin_s=1e4).train(10)
    job.silent.add("n-1")
    freeze(job, 40.0).wait(16.0)
    assert job.state is JobState.STOPPING
    assert job.incident.node == "n-1"


def test_a_short_pause_only_stops_the_clock(running):
    job = running(3, silence_s=15.0, hang_margin_s=1e4).train(10)
    job.silent.add("n-1")
    job.wait(10.0)
    freeze(job, 4.0)
    assert job.state is JobState.RUNNING
    job.wait(4.9)
    assert job.state is JobState.RUNNING
    job.wait(0.2)
    assert job.state is JobState.STOPPING


def test_a_pause_keeps_what_is_known_of_the_nodes_and_repeats_no_effect(running):
    job = running(2, labels=lambda index: {"rack": f"r{index}"})
    job.exit(1, sig=9).said.clear()
    freeze(job, 40.0)
    assert job.said == []
    assert [node.labels for node in job.live_nodes.values()] == [{"rack": "r0"}, {"rack": "r1"}]
    assert [node.incarnation for node in job.live_nodes.values()] == ["n-0/1", "n-1/1"]


def test_timers_stand_still_during_a_pause(running):
    job = running(2, kill_s=10.0, silence_s=1e4).exit(1, sig=9).wait(10.0)
    freeze(job, 40.0).wait(4.0)
    assert job.state is JobState.STOPPING
    job.done(fx.Kill)
    assert job.state is JobState.LAUNCHING


def test_a_job_that_slept_with_its_driver_does_not_hang(running):
    """Neither driver nor ranks ran: the first report after the pause shows the step of before."""
    job = running(2).train(10)
    freeze(job, 3600.0).heartbeats().wait(5.0)
    assert job.state is JobState.RUNNING
    job.wait(30.0)
    assert job.state is JobState.DIAGNOSING


def test_a_pause_is_no_part_of_how_long_a_launch_takes(running):
    job = running(2, startup_s=100.0).train(5).commit(5)
    job.exit(1, sig=9).done(fx.Kill)
    launched_at = job.record.launched_at
    freeze(job, 40.0)
    assert job.record.launched_at == launched_at + 40.0
    job.launches()
    freeze(job, 40.0)
    assert job.record.launched_at == launched_at + 40.0


def test_waiting_for_nodes_before_shrinking_does_not_go_on_during_a_pause(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=60.0)
    job.exit(0, sig=9).goes("n-2").done(fx.Kill).wait(30.0)
    freeze(job, 500.0).heartbeats().wait(20.0)
    assert job.state is JobState.ASSEMBLING
    job.wait(11.0)
    assert len(job.record.assignment) == 2


def test_a_node_is_not_silent_while_its_report_may_wait(running):
    job = running(2, silence_s=15.0, hang_margin_s=1e4).train(5)
    job.now += 60.0
    job.tell_late(ev.NodeReport("n-0", "n-0/1"), waited_s=59.0)
    assert job.live_nodes["n-1"].status is NodeStatus.READY
    job.tell_late(ev.NodeReport("n-1", "n-1/1"), waited_s=59.0)
    job.tell(ev.Tick())
    assert job.state is JobState.RUNNING
    assert {node.status for node in job.live_nodes.values()} == {NodeStatus.READY}


def test_a_timer_waits_for_events_that_came_before_it_was_due(running):
    job = running(2, kill_s=10.0, silence_s=1e4).exit(1, sig=9)
    job.now += 60.0
    job.tell_late(ev.NodeReport("n-0", "n-0/1"), waited_s=55.0)
    assert job.state is JobState.STOPPING
    job.tell_late(ev.NodeReport("n-0", "n-0/1"), waited_s=30.0)
    assert job.state is JobState.LAUNCHING


@pytest.mark.parametrize("finished", [False, True])
def test_a_second_start_in_one_life_keeps_what_is_known_of_the_nodes(running, finished):
    job = running(2, labels=lambda index: {"rack": f"r{index}"})
    if finished:
        job.command("stop").all_exit(76).done(fx.Kill)
    job.driver_starts()
    assert [node.labels for node in job.live_nodes.values()] == [{"rack": "r0"}, {"rack": "r1"}]
