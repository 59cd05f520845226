"""What people ask for, by the state of the job; changes of the manifest; plans that compete."""

from __future__ import annotations

import dataclasses

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState


def changed(job, revision=None, *, restart=False, **policy):
    job.tell(ev.SpecChanged(dataclasses.replace(job.core.policy, **policy), revision, restart))
    return job


def test_a_save_by_hand_saves_and_goes_on(running):
    job = running(2, save_s=40.0).command("save")
    (save,) = job.heard(fx.SaveNow)
    assert (save.attempt, save.then_stop, save.deadline_s) == (1, False, 40.0)
    assert save.reason == "because by ada"
    assert job.state is JobState.RUNNING


def test_nothing_is_saved_or_reopened_in_other_states(running):
    job = running(2).exit(0, sig=9).command("save").command("reopen")
    assert not job.heard(fx.SaveNow)
    assert (job.state, job.record.attempt) == (JobState.STOPPING, 1)
    job.command("stop").done(fx.Kill).command("save")
    assert not job.heard(fx.SaveNow)


def test_a_command_without_a_name_gives_no_name(running):
    job = running(2)
    job.tell(ev.ManualCommand("save", "why"))
    assert job.heard(fx.SaveNow)[0].reason == "why"
    job.tell(ev.ManualCommand("evict", "why"))
    job.tell(ev.ManualCommand("release", "why"))
    assert job.state is JobState.RUNNING


def test_an_excluded_node_is_not_evicted_again(running):
    job = running(2, spare_nodes=1).command("evict", "n-2")
    before = job.record.next_incident
    job.command("evict", "n-2")
    assert job.record.next_incident == before
    assert job.incident.action == "replace_node"
    assert job.incident.reason == "n-2 evicted: because by ada"


def test_only_the_releases_of_a_person_clear_the_history(running):
    job = running(2, spare_nodes=1)
    job.record.history["n-2"] = [job.now - 9 * 86400.0]
    job.command("evict", "n-2").agent_restarts("n-2")
    job.join("n-2", checked=True)
    assert "n-2" not in job.record.excluded
    assert "n-2" in job.record.history
    job.command("evict", "n-2").command("release", "n-2").command("release", "n-9")
    assert "n-2" not in job.record.history


def test_a_stop_while_nodes_are_waited_for_ends_the_job_at_once(start):
    job = start(2).command("stop")
    assert (job.state, job.record.finish_state) == (JobState.FINISHED, "stopped")


def test_a_stop_during_a_launch_kills_without_a_save(running):
    job = running(2).exit(0, sig=9).done(fx.Kill).command("stop")
    assert job.state is JobState.STOPPING
    assert not job.heard(fx.SaveNow)
    job.done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_suspending_while_nodes_are_waited_for_takes_the_request_back(start):
    job = start(2, spare_nodes=1, min_nodes=1, node_counts=(2, 1)).join("n-0").command("suspend")
    assert job.state is JobState.SUSPENDED
    assert (job.record.outstanding, job.record.waiting_since, job.record.refusals) == (0, 0.0, 0)
    assert not job.pending(fx.Acquire)
    job.heard(fx.Acquire)
    job.command("resume")
    assert job.state is JobState.ASSEMBLING
    assert [a.count for a in job.heard(fx.Acquire)] == [2]


def test_a_suspended_job_holds_no_open_incident(running):
    job = running(2).exit(0, sig=9).command("suspend").done(fx.Kill)
    assert job.state is JobState.SUSPENDED
    assert job.incident.outcome == "suspended: because by ada"


def test_resuming_a_job_that_runs_changes_nothing(running):
    job = running(2).command("resume")
    assert job.state is JobState.RUNNING
    job.exit(0, sig=9)
    plan = job.record.plan
    job.command("resume")
    assert job.record.plan == plan
    job.done(fx.Kill).done(fx.Launch).train(1).command("stop").command("resume")
    assert job.record.plan.state == "stopped"


@pytest.mark.parametrize(
    ("first", "second", "end"),
    [
        ("suspend", "stop", JobState.FINISHED),
        ("stop", "suspend", JobState.FINISHED),
        ("suspend", "suspend", JobState.SUSPENDED),
    ],
)
def test_the_stronger_of_two_plans_stays(running, first, second, end):
    job = running(2).command(first).command(second).all_exit(76)
    job.command(second).done(fx.Kill)
    assert job.state is end


def test_a_stop_asked_for_after_a_crash_ends_the_job(running):
    job = running(2).exit(0, sig=9).command("stop").done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_an_order_to_save_replaces_the_one_before(running):
    job = running(2).command("save").command("stop")
    assert len(job.pending(fx.SaveNow)) == 1
    assert [save.then_stop for save in job.heard(fx.SaveNow)] == [False, True]


def test_reopening_resets_budgets_and_trusts_every_checkpoint(running):
    job = running(1, max_restarts=1, no_progress_limit=1).train(3).commit(3)
    job.exit(0, sig=9).recovers().exit(0, sig=9).done(fx.Kill)
    record = job.record
    record.distrusted, record.tainted = [Commit(3, 1)], {1: 2}
    assert record.finish_state == "failed"
    job.command("reopen")
    assert (record.finish_state, record.finish_reason, record.restarts) == (None, "", {})
    assert (record.distrusted, record.tainted) == ([], {})
    assert (record.failures_in_row, record.failures_at_step, record.refusals) == (0, 0, 0)
    assert job.state in (JobState.ASSEMBLING, JobState.LAUNCHING)


def test_a_reopened_job_that_the_manifest_suspends_stays_suspended(running):
    job = changed(running(1), suspend=True).all_exit(76).done(fx.Kill).command("stop")
    job.command("reopen")
    assert job.state is JobState.SUSPENDED
    assert job.record.suspended_by_spec


def test_a_suspension_in_the_manifest_stops_the_job_once(running):
    job = changed(running(2), suspend=True)
    assert job.state is JobState.SAVING
    assert job.heard(fx.SaveNow)[0].reason == "spec.suspend was set"
    job.all_exit(76).done(fx.Kill)
    changed(job, save_s=50.0)
    assert job.state is JobState.SUSPENDED
    changed(job, suspend=False)
    assert job.state is JobState.LAUNCHING


def test_more_spares_in_the_manifest_are_asked_for_at_once(running):
    job = running(2)
    job.heard(fx.Acquire)
    changed(job, spare_nodes=2)
    assert [a.count for a in job.heard(fx.Acquire)] == [2]
    assert job.pending(fx.Acquire)


def test_a_changed_spec_is_applied_when_its_time_is_over(running):
    job = changed(running(2, apply_within_s=50.0), "rev-b", restart=True)
    job.train(49)
    assert job.state is JobState.RUNNING
    job.train(1)
    assert job.state is JobState.SAVING
    assert job.heard(fx.SaveNow)[0].reason == "changed spec rev-b is applied"


def test_the_time_of_a_changed_spec_counts_from_the_first_change(running):
    job = changed(running(2, apply_within_s=50.0), "rev-b", restart=True).train(30)
    changed(job, "rev-b", restart=True).train(19)
    assert job.state is JobState.RUNNING
    job.train(1)
    assert job.state is JobState.SAVING


def test_a_reverted_spec_pages_in_its_incident_and_restores_the_policy(running):
    job = running(2, no_progress_limit=1, node_blame_limit=99.0).commit(1)
    changed(job, "rev-a")
    changed(job, "rev-b", restart=True, hang_margin_s=77.0)
    job.exit(0, sig=9).done(fx.Kill)
    assert (job.record.spec.running, job.record.spec.previous) == ("rev-b", "rev-a")
    assert job.heard(fx.Launch)[-1].revision == "rev-b"
    job.exit(0, sig=9).done(fx.Kill).exit(0, sig=9)
    assert job.incident.action == "revert_spec"
    assert job.incident.decision.endswith("with the changed spec rev-b; rev-a worked")
    (page,) = job.heard(fx.Page)
    assert page.reason == "spec rev-b made no progress, back to rev-a"
    assert page.incident == job.incident.id
    assert job.core.policy.hang_margin_s == 10.0
    assert (job.record.failures_in_row, job.record.failures_at_step) == (0, 0)


def test_a_spec_is_reverted_only_while_no_new_step_was_completed(running):
    job = changed(running(2, no_progress_limit=1, node_blame_limit=99.0), "rev-a").train(4).commit(5)
    changed(job, "rev-b", restart=True).exit(0, sig=9).done(fx.Kill).done(fx.Launch)
    job.heartbeat("n-0", "n-1", step=5)
    assert job.record.spec.previous == "rev-a"
    job.train(1)
    assert job.record.spec.previous is None
    job.exit(0, sig=9).recovers().exit(0, sig=9)
    assert job.incident.action in ("fail_job", "restart_in_place")


def test_a_change_back_before_it_ran_keeps_what_to_fall_back_to(running):
    job = changed(running(2, node_blame_limit=99.0), "rev-a").commit(1)
    changed(job, "rev-b", restart=True, hang_margin_s=77.0).exit(0, sig=9).done(fx.Kill)
    spec = job.record.spec
    assert (spec.previous, spec.before.hang_margin_s) == ("rev-a", 10.0)
    changed(job, "rev-c", restart=True)
    changed(job, "rev-b")
    assert (spec.waiting, spec.running, spec.previous) == (None, "rev-b", "rev-a")
    assert spec.before is not None
    assert "applySpec" not in job.record.deadlines
