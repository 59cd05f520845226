"""Answers to effects: done, failed or refused, in time or late, also when the job has gone on."""

from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState, NodeStatus


def container_restarting(running, **policy):
    job = running(2, **policy)
    job.train(5).exit(1, sig=9).done(fx.Kill).fails(fx.Launch, "no answer", ("n-1",)).done(fx.Kill)
    assert job.heard(fx.RestartSlot)[0].node == "n-1"
    return job


def test_answers_to_effects_that_nobody_waits_for_change_nothing(running):
    job = running(2)
    for answer in (
        ev.EffectDone("e-99"),
        ev.EffectFailed("e-99", "no", ("n-1",)),
        ev.FleetRefused("e-99", "no"),
    ):
        assert job.tell(answer) == []
    assert (job.state, job.record.incidents) == (JobState.RUNNING, [])


@pytest.mark.parametrize("answer", ["fails", "refuse"])
def test_a_container_that_cannot_be_restarted_loses_its_node(running, answer):
    job = container_restarting(running)
    getattr(job, answer)(fx.RestartSlot, "the pod is gone")
    assert job.live_nodes["n-1"].status is NodeStatus.GONE
    assert not job.pending(fx.RestartSlot)
    assert any("the container of n-1 was not restarted: the pod is gone" in e for e in job.incident.evidence)
    assert job.record.lost["n-1"].reason.endswith("the pod is gone")


def test_a_container_that_came_back_before_it_was_refused_stays(running):
    job = container_restarting(running)
    job.agent_restarts("n-1")
    job.refuse(fx.RestartSlot)
    assert job.live_nodes["n-1"].status is NodeStatus.READY


def test_a_restarting_container_has_the_time_of_a_startup(running):
    job = container_restarting(running, startup_s=100.0, silence_s=15.0)
    job.silent.add("n-1")
    job.wait(114.0)
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN
    job.wait(2.0)
    assert job.live_nodes["n-1"].status is NodeStatus.GONE


def test_a_restarted_container_is_a_new_incarnation(running):
    job = container_restarting(running)
    job.heartbeat("n-1").exit(1, sig=9)
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN


@pytest.mark.parametrize(
    ("nodes", "blamed", "reason"),
    [
        ((), None, "launch failed: no store"),
        (("n-1",), "n-1", "launch failed on n-1: no store"),
        (("n-0", "n-1"), None, "launch failed on n-0, n-1: no store"),
    ],
)
def test_a_failed_launch_blames_the_node_if_it_is_one(running, nodes, blamed, reason):
    job = running(2).exit(0, sig=9).done(fx.Kill)
    job.fails(fx.Launch, "no store", nodes)
    assert (job.incident.cause, job.incident.node, job.incident.reason) == ("launch_failed", blamed, reason)
    assert job.incident.milestones["fault"].at == job.now


def test_a_failed_launch_names_at_most_eight_nodes(running):
    job = running(10).exit(0, sig=9).done(fx.Kill)
    job.fails(fx.Launch, "no store", tuple(f"n-{i}" for i in range(10)))
    assert job.incident.reason == f"launch failed on {', '.join(f'n-{i}' for i in range(8))}: no store"


def test_a_launch_answered_late_changes_nothing(running):
    job = running(2).exit(0, sig=9).done(fx.Kill)
    job.heartbeat("n-0", "n-1", step=1)
    assert job.state is JobState.RUNNING
    job.fails(fx.Launch, "too late", ("n-1",))
    assert job.state is JobState.RUNNING
    assert "launched" not in job.incident.milestones


def test_a_save_that_fails_while_the_job_goes_on_changes_nothing(running):
    job = running(2).command("save").fails(fx.SaveNow, "disk full")
    assert job.state is JobState.RUNNING
    assert "save" not in job.record.deadlines


def test_a_kill_answered_when_the_job_went_on_is_void(running):
    job = running(2, kill_s=10.0).exit(0, sig=9)
    kill = job.pending(fx.Kill)[-1]
    job.wait(16.0)
    assert job.state is JobState.LAUNCHING
    job.tell(ev.EffectDone(kill, {"unreaped": ["n-1"]}))
    assert job.state is JobState.LAUNCHING
    assert job.live_nodes["n-1"].status is NodeStatus.READY


def test_a_kill_has_a_little_longer_than_its_deadline(running):
    job = running(2, kill_s=10.0).exit(0, sig=9)
    assert job.heard(fx.Kill)[0].deadline_s == 10.0
    job.wait(14.9)
    assert job.state is JobState.STOPPING
    job.wait(0.2)
    assert job.state is JobState.LAUNCHING


def test_an_incident_keeps_what_the_cluster_refused(running):
    job = running(2, spare_nodes=1, quarantine=True).train(3)
    job.hardware("n-1", "xid", 79).refuse(fx.RequestQuarantine, "bound of the cluster")
    assert "quarantine refused: bound of the cluster" in job.incident.evidence
    job.recovers()


def test_refusals_are_paged_once_and_waited_out_ever_longer(start):
    job = start(1, acquire_tries=60)
    waits = []
    for _ in range(7):
        job.refuse(fx.Acquire, "no quota")
        assert job.record.outstanding == 0
        waits.append(job.record.deadlines["acquireRetry"] - job.now)
        job.wait(waits[-1])
        assert job.record.outstanding == 1
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0])
    assert [page.reason for page in job.heard(fx.Page)] == ["the fleet refused a node: no quota"]


def ends_unseen(job, *nodes):
    """Nodes whose agents end before they join."""
    for node in nodes:
        job.tell(ev.NodeGone(node, None, "the agent ended (exit code 1)", at=job.now))


def test_nodes_that_end_before_they_join_are_asked_for_ever_more_slowly_and_then_no_more(start):
    job = start(1, acquire_tries=8)
    waits = []
    for number in range(8):
        job.done(fx.Acquire)
        ends_unseen(job, f"n-{number}")
        if job.state is JobState.FINISHED:
            break
        waits.append(job.record.deadlines["acquireRetry"] - job.now)
        job.wait(waits[-1])
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0])
    reason = "the agent ended (exit code 1)"
    assert [page.reason for page in job.heard(fx.Page)] == [
        f"a node ended before it joined: {reason}",
        f"job fails: no nodes after 8 tries: {reason}",
    ]
    assert job.record.finish_state == "failed"


def test_nodes_of_one_request_that_all_end_before_they_join_are_one_try(start):
    job = start(100, acquire_tries=60).done(fx.Acquire)
    ends_unseen(job, *(f"n-{number}" for number in range(100)))
    assert (job.record.refusals, job.record.outstanding) == (1, 0)
    assert job.state is JobState.ASSEMBLING
    job.heard(fx.Acquire)
    job.wait(5.0)
    assert [effect.count for effect in job.heard(fx.Acquire)] == [100]


@pytest.mark.parametrize("answer", ["fails", "refuse"])
def test_a_job_whose_nodes_cannot_be_released_has_ended_and_a_person_is_told(running, answer):
    job = running(1).command("stop").all_exit(76).done(fx.Kill)
    job.heard(fx.Page)
    getattr(job, answer)(fx.Finish, "process 12 is stuck")
    reason = "the job has ended, but its nodes may not all be released: process 12 is stuck"
    assert [page.reason for page in job.heard(fx.Page)] == [reason]
    job.done(fx.Page)
    assert job.record.pending == {}
    assert job.record.finish_state == "stopped"


def test_the_last_try_fails_the_job_and_says_why(start):
    job = start(1, acquire_tries=2)
    job.refuse(fx.Acquire, "no quota").wait(5.1).refuse(fx.Acquire, "still none")
    assert job.record.finish_reason == "no nodes after 2 tries: still none"
    assert job.heard(fx.Page)[-1].reason == "job fails: no nodes after 2 tries: still none"


def test_a_failed_request_for_nodes_counts_as_refused(start):
    job = start(2, acquire_tries=9).fails(fx.Acquire, "timeout")
    assert (job.record.refusals, job.record.outstanding) == (1, 0)
    assert not job.pending(fx.Acquire)


def test_refused_spares_keep_half_of_the_tries_for_a_job_that_waits(running):
    job = running(1, spare_nodes=1, acquire_tries=6).goes("n-1")
    for _ in range(5):
        job.refuse(fx.Acquire).train(61)
    assert job.record.refusals == 3
    assert job.state is JobState.RUNNING


def test_nodes_that_do_not_come_are_refused_by_time(start):
    job = start(1, startup_s=100.0)
    job.done(fx.Acquire).wait(99.0)
    assert job.record.outstanding == 1
    job.wait(1.5)
    assert (job.record.outstanding, job.record.refusals) == (0, 1)
    assert job.heard(fx.Page)[0].reason == "the fleet refused a node: none came in 100 s"
    job.heard(fx.Acquire)
    job.wait(5.0)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]


def test_a_launch_that_takes_too_long_names_who_is_late(running):
    job = running(8, startup_s=100.0).exit(0, sig=9).wait(7.0).done(fx.Kill).done(fx.Launch)
    job.heartbeat("n-0", step=1).wait(101.0)
    assert job.incident.cause == "launch_failed"
    assert job.incident.node is None
    assert job.incident.reason == (
        "no first step within 100 s of the launch (health.startupSeconds); "
        "waiting for n-1, n-2, n-3, n-4, n-5"
    )


def test_a_launch_over_a_learnt_bound_is_told_as_such(running):
    job = running(2, startup_s=600.0).train(3).commit(3)
    job.exit(0, sig=9).wait(8.0).done(fx.Kill).done(fx.Launch).wait(20.0).train(5)
    job.exit(0, sig=9).wait(8.0).done(fx.Kill).done(fx.Launch).wait(106.0)
    assert job.incident.reason == (
        "no first step within 105 s of the launch (learnt from earlier launches); waiting for n-0, n-1"
    )


def test_a_launch_that_an_older_version_began_is_counted_from_its_phase(running):
    job = running(2, startup_s=100.0).exit(0, sig=9).done(fx.Kill)
    began = job.record.ledger.began
    job.edited = True
    job.record.launched_at = 0.0
    job.driver_restarts()
    assert job.record.launched_at == began


def test_a_spare_that_is_asked_for_again_does_not_disturb_training(running):
    job = running(1, spare_nodes=1).goes("n-1").refuse(fx.Acquire)
    job.heard(fx.Acquire)
    job.wait(5.0)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]
    assert job.state is JobState.RUNNING


def test_unreaped_nodes_are_lost_and_released(running):
    job = running(3, spare_nodes=2).exit(0, sig=9)
    job.done(fx.Kill, unreaped=["n-1", "n-2", "n-9"])
    assert job.record.assignment == ("n-0", "n-3", "n-4")
    assert {r.node for r in job.heard(fx.Release)} == {"n-1", "n-2"}
    assert {n for n, out in job.record.excluded.items() if "stuck in the kernel" in out.reason} == {
        "n-1",
        "n-2",
    }


def test_every_node_unreaped_waits_for_others(running):
    job = running(1).exit(0, sig=9).done(fx.Kill, unreaped=["n-0"])
    assert job.state is JobState.ASSEMBLING
    job.join("n-1")
    assert job.record.assignment == ("n-1",)
