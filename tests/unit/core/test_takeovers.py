"""A driver that takes over: which timers get more time, who is expected, and what goes on at once."""

from __future__ import annotations

import dataclasses

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState, NodeStatus

GRACE_S = 10.0


def test_nodes_are_expected_until_the_grace_time_is_over(running):
    job = running(2, spare_nodes=1, silence_s=6.0).driver_restarts()
    assert {name: node.status for name, node in job.live_nodes.items()} == dict.fromkeys(
        ("n-0", "n-1", "n-2"), NodeStatus.UNKNOWN
    )
    assert job.record.deadlines["reconnect"] == job.now + GRACE_S
    job.silent = {"n-1", "n-2"}
    job.join("n-0", attempt=1).wait(9.9)
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN
    job.wait(0.2)
    assert job.live_nodes["n-1"].status is NodeStatus.GONE


def test_a_longer_silence_bound_is_not_shortened_by_the_grace_time(running):
    job = running(2, silence_s=15.0).driver_restarts()
    job.silent = {"n-1"}
    job.join("n-0", attempt=1).wait(14.9)
    assert job.live_nodes["n-1"].status is NodeStatus.UNKNOWN
    job.wait(0.1)
    assert job.live_nodes["n-1"].status is NodeStatus.GONE


def test_excluded_and_lost_nodes_are_not_expected(running):
    job = running(3, spare_nodes=2).command("evict", "n-4").goes("n-1")
    job.driver_restarts()
    assert set(job.live_nodes) == {"n-0", "n-2", "n-3"}


@pytest.mark.parametrize(
    ("timer", "slack_s"),
    [("kill", 20.0), ("evidence", 10.0), ("save", 90.0), ("check", 300.0), ("leaving", 15.0)],
)
def test_who_waits_for_an_answer_waits_for_the_grace_time_and_the_answer(running, timer, slack_s):
    job = running(2, kill_s=20.0, save_s=90.0, silence_s=15.0)
    job.edited = True
    job.record.deadlines = {timer: job.now + 1.0}
    job.driver_restarts()
    assert job.record.deadlines[timer] == job.now + GRACE_S + slack_s


def test_a_timer_with_more_time_left_keeps_it(running):
    job = running(2, startup_s=600.0).exit(0, sig=9).done(fx.Kill)
    due = job.record.deadlines["startup"]
    job.driver_restarts()
    assert job.record.deadlines["startup"] == due


def test_shrinking_waits_as_long_as_before_a_takeover(running):
    job = (
        running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=60.0).goes("n-1").done(fx.Kill).wait(50.0)
    )
    job.driver_restarts()
    assert job.record.deadlines["shrink"] == job.now + 60.0
    assert job.record.waiting_since == job.now


def test_a_running_job_has_a_startup_to_report_its_next_step(running):
    job = running(2, startup_s=100.0).train(20).driver_restarts()
    assert job.record.deadlines["hang"] == job.now + GRACE_S + 100.0
    assert (job.core.live.step, job.core.live.progress_at) == (0, job.now)


def test_steps_go_on_from_what_the_attempt_resumed(running):
    job = running(2).train(5).commit(4).exit(0, sig=9).recovers().driver_restarts()
    assert job.core.live.step == 4


def test_an_ended_job_expects_nobody(running):
    job = running(2).command("stop").all_exit(76).done(fx.Kill).driver_restarts()
    assert job.live_nodes == {}
    assert job.record.deadlines == {}
    assert job.record.term == 2


def test_a_first_driver_starts_the_job(start):
    job = start(2)
    assert job.state is JobState.ASSEMBLING
    assert (job.record.term, job.record.ledger.started_at) == (1, job.now)
    assert "reconnect" not in job.record.deadlines


def test_a_job_that_never_launched_goes_on_assembling(start):
    job = start(2).join("n-0")
    job.driver_restarts().join("n-0", "n-1")
    assert job.state is JobState.LAUNCHING


def test_a_suspension_set_meanwhile_stops_the_job(running):
    job = running(2)
    job.core.policy = dataclasses.replace(job.core.policy, suspend=True)
    job.driver_restarts()
    assert job.state is JobState.SAVING
    assert job.heard(fx.SaveNow)[-1].reason == "spec.suspend is set"


def test_evidence_that_was_asked_for_before_is_taken(running):
    job = running(3).train(20).wait(13.5)
    asked = job.pending(fx.CollectEvidence)[-1]
    job.driver_restarts()
    assert job.core.live.evidence_id == asked
    job.join("n-0", "n-1", "n-2", attempt=1)
    for rank in range(3):
        state = "T" if rank == 1 else "S"
        job.tell(ev.Evidence(asked, f"n-{rank}", (ev.RankEvidence(rank, state, 21, "forward"),)))
    assert (job.state, job.incident.node) == (JobState.STOPPING, "n-1")


def stalled(running, nodes=3, **policy):
    return running(nodes, **policy).train(20).wait(13.5)


def tell(job, *ranks: ev.RankEvidence):
    asked = job.pending(fx.CollectEvidence)[-1]
    for rank in ranks:
        job.tell(ev.Evidence(asked, f"n-{rank.rank}", (rank,)))
    return job


def test_a_stall_is_told_with_its_length_and_since_when(running):
    job = stalled(running)
    incident = job.incident
    assert incident.reason == "no step for 13.0 s in forward; a step takes 1.00 s"
    fault = incident.milestones["fault"]
    assert (fault.at, fault.source) == (job.core.live.progress_at + 1.0, "estimated")
    (collect,) = job.heard(fx.CollectEvidence)
    assert (collect.attempt, collect.nodes, collect.deadline_s) == (1, ("n-0", "n-1", "n-2"), 10.0)
    opened = incident.milestones["detected"].at
    assert job.record.deadlines["flap"] == opened + 30.0
    assert job.record.deadlines["evidence"] == opened + 10.0
    assert "grow" not in job.record.deadlines


def test_evidence_is_judged_once_all_have_answered_or_its_time_is_over(running):
    job = stalled(running)
    stopped = ev.RankEvidence(1, "T", 21, "forward")
    tell(job, stopped)
    assert job.state is JobState.DIAGNOSING
    job.tell(ev.Evidence(job.core.live.evidence_id, "n-9", (ev.RankEvidence(9, "T"),)))
    assert set(job.core.live.evidence) == {"n-1"}
    job.wait(10.0)
    assert (job.state, job.incident.node, job.incident.rank) == (JobState.STOPPING, "n-1", 1)
    assert not job.pending(fx.CollectEvidence)


def test_at_most_six_suspects_are_evidence(running):
    job = stalled(running, 16, flap_tolerance_s=20.0)
    tell(job, *(ev.RankEvidence(i, "D" if i < 8 else "S", 21, "forward") for i in range(16)))
    assert len(job.incident.evidence) == 6
    job.wait(20.0)
    assert (job.incident.node, job.incident.rank) == ("n-0", 0)
    assert job.incident.reason.startswith(
        "rank 0 sleeps uninterruptibly (driver or file system); no step for"
    )
    assert (job.record.ledger.phase, job.record.ledger.node) == ("recovery", "n-0")


def test_two_nodes_without_an_answer_suspect_nobody(running):
    job = stalled(running, 4, flap_tolerance_s=20.0)
    tell(job, *(ev.RankEvidence(i, "S", 21, "forward") for i in range(2))).wait(20.0)
    assert (job.state, job.incident.node) == (JobState.STOPPING, None)
    assert "inconclusive: no rank stands out" in job.incident.evidence


def test_an_xid_long_before_the_stall_is_no_evidence_of_it(running):
    job = running(3, correlate_s=5.0).train(10).hardware("n-1", "xid", 94).train(10).wait(13.5)
    tell(job, *(ev.RankEvidence(i, "S", 21, "forward") for i in range(3)))
    assert job.state is JobState.DIAGNOSING


def test_an_xid_is_told_with_the_stall_that_it_explains(running):
    job = running(3).train(20).hardware("n-1", "xid", 94, "Contained").wait(13.5)
    tell(job, *(ev.RankEvidence(i, "S", 21, "forward") for i in range(3)))
    assert job.incident.reason.startswith("xid-94 on n-1; then no step for 13.0 s")
    assert "Contained" in job.incident.evidence


def test_a_stall_in_shadow_mode_is_judged_again_while_it_lasts(running):
    job = stalled(running, shadow=("hang",), startup_s=100.0)
    tell(job, *(ev.RankEvidence(i, "T" if i == 1 else "S", 21, "forward") for i in range(3)))
    assert job.record.deadlines["flap"] == job.now + 100.0
    (page,) = job.heard(fx.Page)
    assert page.incident == job.incident.id
    assert "shadow mode: would restart_in_place, since rank 1 is stopped by a signal" in page.reason
    assert job.incident.action == "none"


def test_a_step_ends_the_stall(running):
    job = stalled(running)
    job.train(1)
    closed = job.incident
    assert (closed.outcome, closed.action) == ("recovered by itself", "none")
    assert closed.decision == "steps went on before anything was done"
    assert "flap" not in job.record.deadlines
    assert job.record.ledger.phase == "productive"


def exits_late(running, **policy):
    return running(2, startup_s=50.0, **policy).train(3)


def test_the_others_have_a_startup_to_follow_a_rank_that_left(running):
    job = exits_late(running).exit(1, 0)
    assert job.record.deadlines["leaving"] == job.now + 50.0
    job.wait(30.0)
    due = job.record.deadlines["leaving"]
    job.exit(1, 0)
    assert job.record.deadlines["leaving"] == due
    job.wait(21.0)
    assert job.incident.reason == (
        "rank 1 on n-1 left with code 0 at 00:16:44 UTC while its peers still worked; "
        "1 of 2 ranks ended, the others did not within 50 s"
    )
    assert job.incident.cause == "hang"


def test_ranks_that_all_completed_end_the_job_with_its_steps(running):
    job = running(2).all_exit(0).done(fx.Kill)
    assert job.record.finish_reason == "all 1000 steps are done"
    job = running(2, reports_steps=False).all_exit(0).done(fx.Kill)
    assert job.record.finish_reason == "all ranks ended well"


def test_ranks_that_left_unasked_after_a_step_are_launched_again(running):
    job = running(2).train(3).all_exit(76)
    assert job.heard(fx.Kill)[-1].reason == "ranks saved and left without being asked"
    assert not job.record.restarts
    job.done(fx.Kill).done(fx.Launch).all_exit(76)
    assert job.incident.reason == "ranks saved and left without being asked, and without a step"


def test_a_mix_of_completed_and_left_is_no_completion(running):
    job = running(2).train(3).exit(0, 0).exit(1, 76)
    assert job.record.plan.state is None


def test_a_rank_that_exits_twice_counts_once(running):
    job = running(2).exit(0, 0).exit(0, 1)
    assert job.state is JobState.RUNNING
    assert job.core.live.exits == {0: 0}


def test_exits_while_the_ranks_are_stopped_that_say_nothing_change_nothing(running):
    echo = {"error": "RuntimeError", "message": "gloo: Connection closed by peer"}
    job = running(3).exit(0, 1, **echo).exit(1, 76).exit(1, 1, **echo)
    assert (job.incident.node, job.record.restarts) == ("n-0", {"crash": 1})


def test_exits_of_ranks_that_are_stopped_on_purpose_open_no_incident(running):
    job = running(2).command("stop").fails(fx.SaveNow).exit(0, 1).exit(1, sig=9)
    assert (job.record.incident, job.record.incidents) == (None, [])
    assert job.state is JobState.STOPPING
