"""What reports of ranks change: milestones, goodput, learnt bounds, and the end of an incident."""

from __future__ import annotations

import math

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState, NodeStatus


def all_report(job, step=0, absent=(), quiet_s=0.0, attempt=None, **fields):
    """A summarised report of all nodes."""
    now = job.now
    values = {"phase": "forward", "progress_at": now, "step_seconds": 1.0, "groups_at": now, "loaded_at": now}
    progress = ev.RankProgress(
        rank=0, step=step, **{**values, "first_step_at": now if step else 0.0, **fields}
    )
    number = job.record.attempt if attempt is None else attempt
    job.tell(ev.JobReport(number, progress, job.now + quiet_s, absent))
    return job


def launching(running, nodes=2, **policy):
    return running(nodes, **policy).train(3).commit(3).exit(0, sig=9).done(fx.Kill).done(fx.Launch)


def test_a_job_runs_once_every_node_made_its_first_step(running):
    job = launching(running, 3)
    job.heartbeat("n-0", "n-1", step=4)
    assert job.state is JobState.LAUNCHING
    job.heartbeat("n-2", step=4)
    assert job.state is JobState.RUNNING


def test_a_node_passes_a_milestone_when_all_its_ranks_have(running):
    job = launching(running, 1, ranks_per_node=2)

    def report(second: float) -> None:
        ranks = (
            ev.RankProgress(0, 4, groups_at=1.0, loaded_at=2.0, first_step_at=3.0),
            ev.RankProgress(1, 4, groups_at=second, loaded_at=second, first_step_at=second),
        )
        job.tell(ev.NodeReport("n-0", "n-0/1", 2, ranks))

    report(0.0)
    assert job.state is JobState.LAUNCHING
    assert job.core.live.milestones.groups == set()
    report(9.0)
    assert job.state is JobState.RUNNING
    passed = job.core.live.milestones
    assert (passed.groups_at, passed.loaded_at, passed.first_step_at) == (9.0, 9.0, 9.0)


def test_a_milestone_is_passed_when_the_last_node_passes_it(running):
    job = launching(running)
    times = {"groups_at": 10.0, "loaded_at": 20.0, "first_step_at": 30.0}
    job.heartbeat("n-0", step=4, **{name: at + 5.0 for name, at in times.items()})
    job.heartbeat("n-1", step=4, **times)
    milestones = job.incident.milestones
    assert [milestones[name].at for name in ("groups", "loaded", "firstStep")] == [15.0, 25.0, 35.0]


def test_a_summarised_report_passes_milestones_for_all_but_the_absent(running):
    job = launching(running)
    all_report(job, 0, loaded_at=0.0, groups_at=10.0)
    passed = job.core.live.milestones
    assert (passed.groups, passed.loaded) == ({"n-0", "n-1"}, set())
    all_report(job, 0, groups_at=9.0, loaded_at=20.0)
    assert passed.loaded == {"n-0", "n-1"}
    all_report(job, 4, ("n-1",), groups_at=9.0, loaded_at=19.0, first_step_at=30.0)
    assert job.state is JobState.LAUNCHING
    assert passed.first_step == {"n-0"}
    all_report(job, 4, groups_at=9.0, loaded_at=19.0, first_step_at=29.0)
    assert job.state is JobState.RUNNING
    milestones = job.incident.milestones
    assert [milestones[name].at for name in ("groups", "loaded", "firstStep")] == [10.0, 20.0, 30.0]


def test_a_summarised_report_of_another_attempt_is_void(running):
    job = running(2, silence_s=15.0)
    all_report(job, 50, attempt=7, quiet_s=1000.0)
    assert (job.core.live.step, job.core.live.quiet_until) == (1, 0.0)


def test_a_summarised_report_moves_steps_stall_and_numerics(running):
    job = running(2).train(2)
    job.now += 5.0
    all_report(job, 9, stall_seconds=2.0)
    assert (job.core.live.step, job.record.best_step) == (9, 9)
    assert job.record.ledger.seconds["checkpointStall"] == 2.0
    for step in range(10, 110):
        job.now += 1.0
        all_report(job, step, loss=3.0)
    for step in (110, 111):
        all_report(job, step, loss=math.nan)
    assert job.incident.cause == "numerics"


def test_a_summarised_report_while_the_ranks_are_stopped_only_tells_that_nodes_live(running):
    job = running(2).train(2).exit(0, sig=9)
    all_report(job, 9)
    assert job.core.live.step == 3
    assert job.core.live.heard_all_at == job.now


def test_reports_of_another_attempt_or_an_idle_node_move_no_step(running):
    job = running(2, spare_nodes=1)
    rank = ev.RankProgress(0, 50, "forward", job.now, 1.0)
    job.tell(ev.NodeReport("n-0", "n-0/1", 7, (rank,)))
    job.tell(ev.NodeReport("n-2", "n-2/1", 1, (rank,)))
    job.tell(ev.NodeReport("n-0", "n-0/1", 1, ()))
    job.tell(ev.NodeReport("n-0", "n-0/9", 1, (rank,)))
    assert job.core.live.step == 1


def test_the_rank_that_was_blocked_longest_counts_as_stall(running):
    job = running(1, ranks_per_node=2).train(10)
    job.now += 10.0
    ranks = tuple(
        ev.RankProgress(i, 11, "forward", job.now, 1.0, stall) for i, stall in enumerate((1.5, 4.0))
    )
    job.tell(ev.NodeReport("n-0", "n-0/1", 1, ranks))
    assert job.record.ledger.seconds["checkpointStall"] == 4.0
    job.tell(ev.NodeReport("n-0", "n-0/1", 1, ranks))
    assert (job.record.ledger.seconds["checkpointStall"], job.record.saves.stall_s) == (4.0, 4.0)


def test_snapshots_stall_training_but_are_no_cost_of_a_save(running):
    job = running(1).train(10)
    job.now += 10.0
    job.heartbeat("n-0", step=12, stall_seconds=3.0, snapshot_seconds=2.0)
    job.now += 10.0
    job.heartbeat("n-0", step=13, stall_seconds=7.0, snapshot_seconds=2.5)
    assert job.record.ledger.seconds["checkpointStall"] == 7.0
    assert job.record.saves.stall_s == 4.5


def test_an_incident_ends_beyond_its_step_at_normal_speed(running):
    job = running(1).train(60).commit(57).exit(0, sig=9).recovers()
    job.step_s = 1.3
    job.train(5)
    assert job.core.live.step == 63
    assert job.record.incident is not None
    job.step_s = 1.2
    job.train(1)
    assert job.record.incident is None
    closed = job.record.incidents[-1]
    assert (closed.outcome, closed.milestones["backToSpeed"].at) == ("recovered", job.now)


def test_an_incident_does_not_end_before_lost_steps_are_regained(running):
    job = running(1).train(20).commit(15).exit(0, sig=9).recovers().train(4)
    assert job.core.live.step == 20
    job.train(1)
    assert job.record.incident is not None
    job.train(1)
    assert job.record.incident is None


def test_a_step_is_timed_between_the_reports_around_it(running):
    job = running(1).train(5)
    before = job.now
    job.now += 10.0
    for told, noted in ((before - 500.0, before), (before + 4.0, before + 4.0)):
        other = job.core.live.step + 1
        job.core.live.reported_at = job.core.live.progress_at = before
        job.heartbeat("n-0", step=other, progress_at=told)
        assert job.core.live.progress_at == noted
    job.now += 1.0
    job.heartbeat("n-0", step=20, progress_at=job.now + 900.0)
    assert job.core.live.progress_at == job.now
    job.now += 1.0
    job.heartbeat("n-0", step=21, progress_at=0.0)
    assert job.core.live.progress_at == job.now


def test_the_hang_timer_starts_at_the_last_step(running):
    job = running(1, hang_steps=3.0, hang_margin_s=10.0).train(20)
    assert job.record.deadlines["hang"] == job.now + 13.0
    last = job.now
    job.now += 5.0
    job.heartbeats()
    assert job.record.deadlines["hang"] == last + 13.0


def test_a_job_that_promised_quiet_hangs_only_after_it(running):
    job = running(1, hang_steps=3.0, hang_margin_s=10.0).train(20)
    all_report(job, 22, quiet_s=50.0)
    all_report(job, 23, quiet_s=50.0)
    assert job.record.deadlines["hang"] == job.now + 63.0


def test_ranks_that_ended_do_not_hang(running):
    job = running(2).train(20).exit(0, 0)
    job.heartbeat("n-1", step=22)
    assert "hang" not in job.record.deadlines
    assert job.record.deadlines["leaving"] == job.now + job.core.policy.startup_s


def test_decay_of_the_pace_is_an_incident_of_its_own(running):
    job = running(1).train(250)
    job.step_s = 1.2
    job.train(400)
    slow = job.record.incidents[-1]
    assert (slow.cause, slow.action) == ("slow", "none")
    assert slow.decision == "MFU decays with the pace; a person looks for the cause"
    (page,) = (page for page in job.heard(fx.Page) if page.incident == slow.id)
    assert page.reason == f"MFU decays: {slow.reason}"


def test_a_commit_prices_the_work_up_to_its_step(running):
    job = running(1).train(20)
    job.commit(16)
    assert job.record.saves.count == 1
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.ledger.seconds["lostWork"] == pytest.approx(5.0)


def test_commits_that_are_known_or_of_another_attempt_count_no_save(running):
    job = running(1).train(20).commit(16).commit(16)
    assert job.record.saves.count == 1
    job.exit(0, sig=9).recovers().commit(12, attempt=1)
    assert job.record.saves.count == 1
    assert job.record.commits == [Commit(12, 1), Commit(16, 1)]


def test_the_two_newest_snapshots_of_a_node_are_remembered(running):
    job = running(1)
    for attempt, step in ((1, 4), (1, 9), (1, 7), (2, 3)):
        job.tell(ev.SnapshotReady("n-0", attempt, step))
    assert job.core.live.snapshots == {"n-0": (Commit(9, 1), Commit(3, 2))}


def test_a_script_that_reports_nothing_recovers_when_it_is_launched(start):
    job = start(1, reports_steps=False, startup_s=50.0).join("n-0").done(fx.Launch)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch)
    assert (job.state, job.incident.outcome) == (JobState.RUNNING, "recovered")
    assert "startup" not in job.record.deadlines


def test_a_script_that_reported_steps_recovers_by_its_next_one(start):
    job = start(1, reports_steps=False).join("n-0").done(fx.Launch).train(3)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch)
    assert job.record.incident is not None
    job.now += 2.0
    job.heartbeat("n-0", step=4, first_step_at=job.now - 1.0)
    assert job.incident.milestones["firstStep"].at == job.now - 1.0
    assert job.incident.outcome == "recovered"


def test_absent_nodes_are_heard_of_when_a_report_covers_them_again(running):
    job = running(2, silence_s=15.0)
    all_report(job, 2, ("n-1", "n-7"), quiet_s=100.0)
    assert job.live_nodes["n-1"].absent
    job.now += 11.0
    job.tell(ev.Tick())
    assert job.live_nodes["n-1"].status is NodeStatus.SUSPECT
    assert job.live_nodes["n-0"].status is NodeStatus.READY
    all_report(job, 3, quiet_s=100.0)
    node = job.live_nodes["n-1"]
    assert (node.absent, node.status, node.heard_until) == (False, NodeStatus.READY, job.now)
    assert job.core.live.absent == set()


def test_an_absent_node_that_still_sends_heartbeats_is_not_silent(running):
    job = running(2, silence_s=15.0)
    all_report(job, 2, ("n-1",), quiet_s=100.0)
    for _ in range(4):
        job.now += 5.0
        job.heartbeat("n-1")
        job.tell(ev.Tick())
    assert job.live_nodes["n-1"].status is NodeStatus.READY
