from __future__ import annotations

from dataclasses import replace

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Action
from megascale.core.state.record import JobState


def change(job, revision, *, restart=True, **policy):
    job.tell(ev.SpecChanged(replace(job.core.policy, **policy), revision, restart))
    return job


def test_thresholds_count_at_once(running):
    job = running(1)
    change(job, "r2", restart=False, hang_margin_s=50.0)
    assert job.core.policy.hang_margin_s == 50.0
    assert job.state is JobState.RUNNING


def test_changed_spec_waits_for_the_next_restart(running):
    job = running(1)
    change(job, "r1", restart=False)
    change(job, "r2")
    job.train(100)
    assert job.state is JobState.RUNNING
    job.exit(0, sig=9).done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r2"


def test_changed_spec_is_applied_in_time_with_a_save(running):
    job = running(1)
    change(job, "r2", apply_within_s=50.0)
    job.train(49)
    assert job.state is JobState.RUNNING
    job.train(2)
    assert job.state is JobState.SAVING
    job.all_exit(76).done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r2"
    assert not job.record.restarts


def test_spec_that_makes_no_progress_is_rolled_back_with_its_policy(running):
    job = running(1, no_progress_limit=2, node_blame_limit=99.0)
    change(job, "r1", restart=False)
    job.train(5).commit(5)
    change(job, "r2", ranks_per_node=1, steps=7777)
    job.exit(0, sig=9).done(fx.Kill)
    for _ in range(3):
        job.done(fx.Launch).exit(0, 1, error="ValueError", message="bad config").done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r1"
    assert job.core.policy.steps == 1000
    assert job.incident.action == "revert_spec"
    assert any("r2 made no progress" in page.reason for page in job.heard(fx.Page))
    job.launches()
    assert job.state is JobState.RUNNING


@pytest.mark.parametrize("error", ["SettingsError", "ManifestError"])
def test_a_manifest_that_its_ranks_refuse_fails_at_once(running, error):
    job = running(2).train(5)
    job.exit(1, 1, error=error, message="model.hiddenSize is 64").done(fx.Kill)
    assert (job.record.finish_state, job.record.restarts) == ("failed", {})
    assert "its ranks refuse the manifest" in job.heard(fx.Finish)[-1].reason


def test_a_changed_spec_that_its_ranks_refuse_is_rolled_back_at_once(running):
    job = running(1)
    change(job, "r1", restart=False)
    job.train(5).commit(5)
    change(job, "r2")
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch)
    job.exit(0, 1, error="SettingsError", message="model.hiddenSize is 64").done(fx.Kill)
    assert job.incident.action == "revert_spec"
    assert job.heard(fx.Launch)[-1].revision == "r1"


def test_an_input_error_may_be_of_one_node_once_the_job_has_trained(running, start):
    job = running(1).train(5)
    job.exit(0, 1, error="InputError", message="flash needs a CUDA device").done(fx.Kill)
    assert job.incident.action == "restart_in_place"
    early = start(1).join("n-0").done(fx.Acquire).done(fx.Launch)
    early.exit(0, 1, error="InputError", message="flash needs a CUDA device").done(fx.Kill)
    assert early.record.finish_state == "failed"


def test_a_script_may_name_its_exceptions_as_it_likes(running):
    job = running(1, reports_steps=False)
    job.exit(0, 1, error="SettingsError", message="x").done(fx.Kill)
    assert job.incident.action == "restart_in_place"


def test_spec_that_made_progress_is_not_rolled_back(running):
    job = running(1, no_progress_limit=2, node_blame_limit=99.0)
    change(job, "r2")
    job.train(5).commit(5).exit(0, sig=9).recovers().train(20)
    for _ in range(3):
        if job.state is not JobState.FINISHED:
            job.exit(0, 1, error="ValueError", message="bad").done(fx.Kill)
        if job.state is JobState.LAUNCHING:
            job.done(fx.Launch).heartbeat("n-0", step=job.record.best_step)
    assert job.record.finish_state == "failed"


def rolled_back(running):
    job = running(1, no_progress_limit=2, node_blame_limit=99.0)
    change(job, "r1", restart=False)
    job.train(5).commit(5)
    change(job, "r2", steps=7777)
    job.exit(0, sig=9).done(fx.Kill)
    for _ in range(3):
        job.done(fx.Launch).exit(0, 1, error="ValueError", message="bad config").done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r1"
    return job


def test_a_spec_that_was_rolled_back_is_not_taken_again(running):
    job = rolled_back(running)
    change(job, "r2", steps=7777)
    job.launches().train(3).exit(0, sig=9).done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r1"
    assert job.core.policy.steps == 1000


def test_another_spec_after_a_rollback_is_taken_and_then_the_first_one_too(running):
    job = rolled_back(running)
    change(job, "r3", steps=2000)
    assert (job.record.spec.waiting, job.record.spec.rejected, job.core.policy.steps) == ("r3", None, 2000)
    change(job, "r2", steps=7777)
    assert (job.record.spec.waiting, job.core.policy.steps) == ("r2", 7777)


def test_a_change_that_is_taken_back_before_it_was_applied_is_not_applied(running):
    job = running(1)
    change(job, "r1", restart=False)
    change(job, "r2", apply_within_s=50.0)
    change(job, "r1")
    assert (job.record.spec.waiting, job.record.spec.before) == (None, None)
    job.train(60)
    assert job.state is JobState.RUNNING
    job.exit(0, sig=9).done(fx.Kill)
    assert job.heard(fx.Launch)[-1].revision == "r1"


def test_new_thresholds_rename_the_running_revision_and_the_waiting_one(running):
    job = running(1)
    change(job, "r1", restart=False)
    change(job, "r2", restart=False)
    assert job.record.spec.running == "r2"
    change(job, "r3")
    change(job, "r4", restart=False)
    assert (job.record.spec.running, job.record.spec.waiting) == ("r2", "r4")
    change(job, None, restart=False)
    assert (job.record.spec.running, job.record.spec.waiting) == ("r2", "r4")


def test_a_job_that_is_started_again_keeps_what_ran_and_has_nothing_to_go_back_to(running):
    job = running(1)
    change(job, "r1", restart=False)
    change(job, "r2")
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.spec.previous == "r1"
    job.record.state = JobState.FINISHED
    job.tell(ev.ManualCommand("reopen", "again"))
    assert (job.record.spec.running, job.record.spec.previous, job.record.spec.before) == ("r2", None, None)


def test_no_node_keeps_the_blame_for_a_revision_that_was_reverted(running):
    job = running(2, no_progress_limit=3)
    change(job, "r1", restart=False)
    job.train(5).commit(5)
    change(job, "r2")
    job.exit(0, sig=9).done(fx.Kill)
    blamed = job.record.blame["n-0"].score
    for _ in range(4):
        job.done(fx.Launch).exit(0, 1, error="ValueError", message="bad config").done(fx.Kill)
    assert job.record.spec.rejected == "r2"
    assert job.record.blame["n-0"].score == pytest.approx(blamed, rel=0.01)
    job.done(fx.Launch).exit(0, sig=9)
    assert job.incident.action == Action.RESTART_IN_PLACE


def test_a_reverted_revision_takes_back_no_blame_that_it_did_not_give(running):
    """Its ranks only lost their peers, which blames no node; the blame is from before."""
    job = running(2, no_progress_limit=3)
    change(job, "r1", restart=False)
    job.train(5).commit(5).exit(1, sig=9).recovers().train(20)
    blamed = job.record.blame["n-1"].score
    change(job, "r2")
    job.exit(0, sig=9).done(fx.Kill)
    for _ in range(9):
        echo = "Connection closed by peer"
        job.done(fx.Launch).exit(1, 1, error="DistBackendError", message=echo).done(fx.Kill)
        if job.record.spec.rejected:
            break
    assert job.record.spec.rejected == "r2"
    assert job.record.blame["n-1"].score == pytest.approx(blamed, rel=0.01)


def test_people_see_the_first_letters_of_a_revision(running):
    job = running(1, no_progress_limit=2, node_blame_limit=99.0)
    change(job, "a" * 64, restart=False)
    job.train(5).commit(5)
    change(job, "b" * 64)
    job.exit(0, sig=9).done(fx.Kill)
    for _ in range(3):
        job.done(fx.Launch).exit(0, 1, error="ValueError", message="bad config").done(fx.Kill)
    pages = [page.reason for page in job.heard(fx.Page)]
    assert f"spec {'b' * 12} made no progress, back to {'a' * 12}" in pages


def test_new_size_is_acquired_now_and_used_at_the_next_launch(running):
    job = running(1)
    job.heard(fx.Acquire)
    change(job, "", restart=False, nodes=2, min_nodes=2)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]
    job.join("n-1").train(3)
    assert job.record.assignment == ("n-0",)
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-1")


def test_completion_counts_the_ranks_that_were_launched(running):
    job = running(2)
    change(job, "", restart=False, ranks_per_node=4)
    job.exit(0, 0)
    job.tell(ev.RankExited("n-1", "n-1/1", 1, 1, 0, None, job.now))
    job.done(fx.Kill)
    assert job.record.finish_state == "completed"


def test_fewer_nodes_let_a_waiting_job_start(start):
    job = start(3)
    job.join("n-0", "n-1")
    job.tell(ev.SpecChanged(Policy(nodes=2, min_nodes=2, steps=1000)))
    assert job.state is JobState.LAUNCHING
