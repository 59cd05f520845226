from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy
from megascale.core.state.record import JobState


def test_job_asks_for_its_nodes_and_launches_when_they_are_there(start):
    job = start(2, spare_nodes=1)
    (acquire,) = job.heard(fx.Acquire)
    assert acquire.count == 3
    job.join("n-0")
    assert job.state is JobState.ASSEMBLING
    job.join("n-1")
    (launch,) = job.heard(fx.Launch)
    assert launch.nodes == ("n-0", "n-1")
    assert launch.attempt == 1
    assert launch.resume is None


def test_spares_may_wait_until_the_first_launch(start):
    job = start(1, spare_nodes=1, spares_after_launch=True)
    assert [a.count for a in job.heard(fx.Acquire)] == [1]
    job.join("n-0")
    assert [a.count for a in job.heard(fx.Acquire)] == [1]


def test_completion_needs_every_rank(running):
    job = running(2)
    job.exit(0, 0)
    assert job.state is JobState.RUNNING
    job.exit(1, 0).done(fx.Kill)
    assert job.record.finish_state == "completed"
    assert [f.state for f in job.heard(fx.Finish)] == ["completed"]


def test_ranks_that_never_follow_a_finished_one_are_a_fault(running):
    job = running(2, startup_s=100.0)
    job.exit(0, 0).wait(99.0)
    assert job.state is JobState.RUNNING
    job.wait(2.0)
    assert job.state is JobState.STOPPING
    assert job.incident.cause == "hang"


def test_restart_resumes_from_the_newest_commit(running):
    job = running(2)
    job.train(5).commit(5).train(3).exit(1, sig=9).done(fx.Kill)
    assert job.resumed_from() == Commit(5, 1)
    assert job.record.attempt == 2


def test_commit_found_while_stopping_counts(running):
    job = running(2)
    job.train(5).exit(1, sig=9).commit(5).done(fx.Kill)
    assert job.resumed_from() == Commit(5, 1)


def test_stop_saves_first_and_keeps_its_reason(running):
    job = running(2)
    job.command("stop")
    assert job.state is JobState.SAVING
    (save,) = job.heard(fx.SaveNow)
    assert save.then_stop
    job.all_exit(76).done(fx.Kill)
    assert (job.record.finish_state, job.record.finish_reason) == ("stopped", "because by ada")


def test_stop_is_not_forgotten_when_a_node_is_evicted_meanwhile(running):
    job = running(2, spare_nodes=1)
    job.command("stop").command("evict", "n-1").all_exit(76).done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_stop_wins_over_a_crash_while_saving(running):
    job = running(2)
    job.command("stop").exit(0, sig=11).done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_save_that_takes_too_long_is_given_up(running):
    job = running(2, save_s=30.0)
    job.command("stop").wait(31.0)
    assert job.state is JobState.STOPPING
    job.done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_failed_save_order_does_not_wait_for_the_deadline(running):
    job = running(2, save_s=1000.0)
    job.command("stop").fails(fx.SaveNow)
    assert job.state is JobState.STOPPING


def test_job_whose_last_state_is_not_saved_fails_and_goes_on_when_it_is_run_again(running):
    job = running(2, steps=10)
    job.commit(1).train(9).all_exit(77)
    assert job.state is JobState.STOPPING
    job.done(fx.Kill)
    assert job.record.finish_state == "failed"
    assert job.record.finish_reason.startswith("failed to save: all 10 steps are done, but the state after")
    assert "the newest checkpoint is of step 1" in job.record.finish_reason
    job.heard(fx.Launch)
    job.done(fx.Finish).command("reopen").join("n-0", "n-1")
    assert job.resumed_from() == Commit(1, 1)


def test_stop_whose_state_is_not_saved_says_so(running):
    job = running(2)
    job.train(3).command("stop").all_exit(77).done(fx.Kill)
    assert job.record.finish_state == "stopped"
    assert "the state after step 4 was not saved" in job.record.finish_reason
    assert "there is no checkpoint" in job.record.finish_reason


def test_stop_that_is_given_up_says_that_nothing_was_saved(running):
    job = running(2, save_s=30.0).command("stop").wait(31.0).done(fx.Kill)
    assert "stopped before they had saved" in job.record.finish_reason


def test_trying_again_to_save_is_no_hang_while_its_bound_lasts(running):
    job = running(2, steps=30, save_s=120.0)
    job.train(29).heartbeat("n-0", "n-1", phase="saving_again")
    job.heartbeats = lambda: job.heartbeat("n-0", "n-1", phase="saving_again")
    job.wait(200.0)
    assert job.state is JobState.RUNNING
    job.wait(100.0)
    assert job.incident.cause == "hang"


def test_suspend_and_resume(running):
    job = running(2)
    job.train(4).command("suspend").commit(5).all_exit(76).done(fx.Kill)
    assert job.state is JobState.SUSPENDED
    job.heard(fx.Launch)
    job.command("resume")
    assert job.resumed_from() == Commit(5, 1)


def test_suspension_called_off_while_stopping_relaunches(running):
    job = running(2)
    job.command("suspend").all_exit(76)
    assert job.state is JobState.STOPPING
    job.command("resume").done(fx.Kill)
    assert job.state is JobState.LAUNCHING


def test_spec_suspend_set_and_unset_while_stopping(running):
    job = running(2)
    policy = job.core.policy
    job.tell(ev.SpecChanged(Policy(nodes=2, min_nodes=2, steps=1000, suspend=True)))
    job.all_exit(76)
    job.tell(ev.SpecChanged(policy))
    job.done(fx.Kill)
    assert job.state is JobState.LAUNCHING


def test_waits_then_shrinks_on_the_tick_alone(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=60.0)
    job.goes("n-1").done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    job.wait(59.0)
    assert job.state is JobState.ASSEMBLING
    job.wait(2.0)
    assert job.state is JobState.LAUNCHING
    assert job.record.assignment == ("n-0", "n-2")
    assert job.incident.action == "shrink"


def test_never_below_min_nodes(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=60.0)
    job.goes("n-1").goes("n-2").done(fx.Kill).wait(200.0)
    assert job.state is JobState.ASSEMBLING
    job.join("n-3")
    assert job.record.assignment == ("n-0", "n-3")


def test_shrunk_job_grows_when_its_nodes_have_been_back_for_a_while(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=10.0, grow_after_s=100.0)
    job.goes("n-1").done(fx.Kill).wait(11.0).launches()
    job.join("n-3").train(50)
    assert job.state is JobState.RUNNING
    job.train(60)
    assert job.state is JobState.SAVING
    job.all_exit(76).done(fx.Kill)
    assert len(job.record.assignment) == 3
    assert sum(job.record.restarts.values()) == 1


def test_unreaped_node_is_left_behind_and_the_launch_goes_on(running):
    job = running(2, spare_nodes=1)
    job.exit(0, sig=9).done(fx.Kill, unreaped=["n-1"])
    assert job.record.assignment == ("n-0", "n-2")
    assert "n-1" in job.record.excluded
    assert [r.node for r in job.heard(fx.Release)] == ["n-1"]


def test_a_node_that_does_not_answer_the_stop_explains_the_echo_of_its_peer(running):
    job = running(2, spare_nodes=1, kill_s=10.0)
    job.silent.add("n-1")
    lost_at = job.now
    job.exit(0, 1, error="DistBackendError", message="Connection closed by peer").wait(10.0)
    assert job.incident.consequence
    job.done(fx.Kill, unreaped=["n-1"])
    assert (job.incident.cause, job.incident.node, job.incident.action) == (
        "node_lost",
        "n-1",
        "replace_node",
    )
    assert "n-1 sent no heartbeat for 10.0 s and did not stop its ranks" in job.incident.reason
    assert job.incident.milestones["fault"].at <= lost_at
    assert any("first seen as" in line for line in job.incident.evidence)
    assert job.record.assignment == ("n-0", "n-2")


def test_a_beating_node_that_cannot_stop_its_ranks_is_stuck_in_the_kernel(running):
    job = running(2, spare_nodes=1, kill_s=10.0)
    job.exit(0, 1, error="DistBackendError", message="Connection closed by peer").wait(10.0)
    job.done(fx.Kill, unreaped=["n-1"])
    assert job.incident.reason == "n-1: ranks not reaped in 10 s, stuck in the kernel"


def test_kill_that_is_never_answered_does_not_hold_up_the_job(running):
    job = running(2, spare_nodes=1, kill_s=10.0)
    job.silent.add("n-1")
    job.exit(1, sig=9).wait(16.0)
    assert job.state is JobState.LAUNCHING
    assert job.record.assignment == ("n-0", "n-2")


def test_node_lost_while_it_is_waited_for_ends_the_wait(running):
    job = running(1, spare_nodes=1)
    job.exit(0, sig=9)
    assert job.state is JobState.STOPPING
    job.goes("n-0")
    assert job.state is JobState.LAUNCHING
    assert job.record.assignment == ("n-1",)


def test_launch_that_hangs_is_given_up(running):
    job = running(2, startup_s=300.0)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).heartbeat("n-0", step=1)
    job.wait(301.0)
    assert job.incident.cause == "launch_failed"
    assert job.incident.node == "n-1"


def test_refusals_back_off_and_end_the_wait_in_the_end(start):
    job = start(1, acquire_tries=3)
    job.refuse(fx.Acquire).wait(5.1).refuse(fx.Acquire).wait(9.0)
    assert not job.pending(fx.Acquire)
    job.wait(2.0).refuse(fx.Acquire)
    assert job.record.finish_state == "failed"


def test_refused_spares_do_not_use_up_the_tries_of_a_later_wait(running):
    job = running(1, acquire_tries=4)
    job.tell(ev.SpecChanged(Policy(nodes=1, spare_nodes=1, steps=1000, acquire_tries=4)))
    for _ in range(8):
        job.refuse(fx.Acquire).train(61)
    job.goes("n-0")
    job.refuse(fx.Acquire)
    assert job.state is JobState.ASSEMBLING


def test_promised_nodes_that_never_come_are_asked_for_again(start):
    job = start(1, startup_s=100.0, acquire_tries=5)
    first = job.pending(fx.Acquire)
    job.wait(110.0)
    assert job.pending(fx.Acquire) != first
    job.wait(2000.0)
    assert job.record.finish_state == "failed"


def test_script_without_steps_runs_as_soon_as_it_is_launched(start):
    job = start(1, reports_steps=False)
    job.join("n-0").done(fx.Launch)
    assert job.state is JobState.RUNNING
    job.wait(5000.0)
    assert job.state is JobState.RUNNING
    job.exit(0, 0).done(fx.Kill)
    assert job.record.finish_state == "completed"


def test_leaving_unasked_without_a_step_is_a_fault(running):
    job = running(1, no_progress_limit=2)
    job.train(2).commit(3).all_exit(76).done(fx.Kill)
    assert job.state is JobState.LAUNCHING
    for _ in range(3):
        if job.state is JobState.LAUNCHING:
            job.done(fx.Launch).all_exit(76).done(fx.Kill)
    assert job.record.finish_state == "failed"


def test_finished_job_can_be_started_again(running):
    job = running(1)
    job.commit(1).command("stop").all_exit(76).done(fx.Kill).done(fx.Finish)
    job.driver_restarts().command("reopen")
    assert job.state is JobState.ASSEMBLING
    job.join("n-0")
    assert job.heard(fx.Launch)[-1].resume == Commit(1, 1)
