from __future__ import annotations

import math

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState


def trained(running, **policy):
    job = running(2, **policy)
    for step in range(100):
        job.train(1, loss=3.0 + 0.01 * (step % 5), grad_norm=1.0 + 0.01 * (step % 3))
    return job


def test_nan_rolls_back_to_before_it(running):
    job = trained(running, distrust_steps=5)
    job.commit(90).commit(101)
    job.train(2, loss=math.nan).commit(103)
    assert job.state is JobState.STOPPING
    assert (job.incident.cause, job.incident.action) == ("numerics", "roll_back")
    job.done(fx.Kill)
    assert job.resumed_from() == Commit(90, 1)


def test_single_nan_is_not_acted_on(running):
    job = trained(running)
    job.train(1, loss=math.nan).train(5, loss=3.0)
    assert job.state is JobState.RUNNING


def test_nan_gradient_norm_alone_is_a_skipped_step(running):
    job = trained(running)
    job.train(5, loss=3.0, grad_norm=math.nan)
    assert job.state is JobState.RUNNING


def test_nan_soon_after_a_load_distrusts_what_was_loaded(running):
    job = trained(running, distrust_steps=50)
    job.commit(60).commit(101).exit(0, sig=9).recovers()
    job.train(10, loss=3.0).train(2, loss=math.nan)
    assert Commit(101, 1) in job.record.distrusted
    job.done(fx.Kill)
    assert job.resumed_from() == Commit(60, 1)


@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_jump_that_stays_rolls_back(running, metric):
    job = trained(running)
    job.commit(80)
    values = {"loss": 3.0, "grad_norm": 1.0}
    job.train(4, **{**values, metric: 20.0})
    assert job.state is JobState.RUNNING
    job.train(1, **{**values, metric: 20.0})
    assert job.state is JobState.STOPPING
    job.done(fx.Kill)
    assert job.resumed_from() == Commit(80, 1)


def test_the_same_jump_again_is_left_to_a_person(running):
    job = trained(running)
    job.commit(80).train(5, loss=20.0).recovers()
    job.train(20, loss=3.0).train(5, loss=20.0)
    assert job.state is JobState.RUNNING
    assert any("code or data" in page.reason for page in job.heard(fx.Page))


def test_the_same_nan_again_fails_the_job_in_the_end(running):
    job = trained(running, no_progress_limit=2, distrust_steps=0)
    job.commit(80)
    for _ in range(2):
        job.train(2, loss=math.nan).recovers().train(20, loss=3.0)
    job.train(2, loss=math.nan)
    assert job.incident.action == "fail_job"
    assert any("replay the steps on" in line for line in job.incident.evidence)


def test_moderate_spike_is_told_but_not_acted_on(running):
    job = trained(running)
    job.train(6, loss=4.5)
    assert job.state is JobState.RUNNING
    assert job.incident.cause == "numerics"
    assert job.incident.action == "none"


def test_numerics_in_shadow_mode(running):
    job = trained(running, shadow=("numerics",))
    job.train(3, loss=math.nan)
    assert job.state is JobState.RUNNING
    assert job.record.shadowed == {"numerics": 1}


def test_decay_of_the_pace_pages_once(running):
    job = running(1)
    job.train(250)
    job.step_s = 1.2
    job.train(400)
    assert job.state is JobState.RUNNING
    assert len([page for page in job.heard(fx.Page) if "MFU decays" in page.reason]) == 1


def stopped_by_nan(running, **policy):
    job = trained(running, spare_nodes=1, check_numbers=True, distrust_steps=5, **policy)
    job.commit(90).train(2, loss=math.nan)
    return job.done(fx.Kill)


def test_nodes_are_checked_before_ranks_run_again(running):
    job = stopped_by_nan(running)
    assert job.heard(fx.CheckNodes)[-1].nodes == ("n-0", "n-1")
    assert job.state is JobState.ASSEMBLING
    job.done(fx.CheckNodes, convicted={"n-1": "rank 3: a product differs"})
    assert (job.incident.cause, job.incident.action, job.incident.node) == ("hardware", "replace_node", "n-1")
    assert job.record.assignment == ("n-0", "n-2")
    assert job.resumed_from() == Commit(90, 1)
    assert job.record.restarts == {"hardware": 1, "numerics": 0}


def test_check_that_finds_nothing_leaves_the_roll_back(running):
    job = stopped_by_nan(running).done(fx.CheckNodes)
    assert (job.incident.cause, job.record.assignment) == ("numerics", ("n-0", "n-1"))
    assert job.resumed_from() == Commit(90, 1)


@pytest.mark.parametrize("how", ["overdue", "failed"])
def test_check_without_an_answer_convicts_nobody(running, how):
    job = stopped_by_nan(running)
    job = job.wait(301.0) if how == "overdue" else job.fails(fx.CheckNodes)
    assert (job.state, job.record.excluded) == (JobState.LAUNCHING, {})
    assert not job.pending(fx.CheckNodes)


def test_every_convicted_node_goes(running):
    job = stopped_by_nan(running)
    job.done(fx.CheckNodes, convicted={"n-0": "differs", "n-1": "differs"})
    assert set(job.record.excluded) == {"n-0", "n-1"}


def test_a_node_lost_during_the_check_is_waited_for_no_longer_than_the_check(running):
    job = stopped_by_nan(running).goes("n-0")
    job.done(fx.CheckNodes)
    assert job.record.assignment == ("n-2", "n-1")


def test_a_new_driver_asks_again(running):
    job = stopped_by_nan(running).driver_restarts(1.0)
    assert job.pending(fx.CheckNodes)
    job.done(fx.CheckNodes, convicted={"n-1": "differs"})
    assert "n-1" in job.record.excluded


def test_suspending_calls_the_check_off(running):
    job = stopped_by_nan(running).command("suspend")
    assert job.state is JobState.SUSPENDED
    assert not job.pending(fx.CheckNodes)
    assert "check" not in job.record.deadlines
