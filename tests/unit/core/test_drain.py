from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState


def test_drain_notice_saves_and_swaps_without_budget_or_blame(running):
    job = running(2, spare_nodes=1)
    job.train(5).hardware("n-1", "drain", text="maintenance at noon")
    assert job.state is JobState.SAVING
    job.commit(7).all_exit(76).done(fx.Kill)
    assert job.resumed_from() == Commit(7, 1)
    assert job.record.assignment == ("n-0", "n-2")
    assert [r.node for r in job.heard(fx.Release)] == ["n-1"]
    assert not job.record.restarts
    assert not job.record.blame
    assert not job.record.excluded
    assert job.incident.cause == "planned"


def test_without_a_spare_training_goes_on_until_one_comes(running):
    job = running(2)
    job.hardware("n-1", "drain")
    assert job.state is JobState.RUNNING
    assert [save.then_stop for save in job.heard(fx.SaveNow)] == [False]
    assert [a.count for a in job.heard(fx.Acquire)][-1] == 1
    job.train(5).join("n-2")
    assert job.state is JobState.SAVING


def test_notice_during_a_launch_is_heeded_after_it(running):
    job = running(2, spare_nodes=1)
    job.exit(0, sig=9).done(fx.Kill).hardware("n-1", "drain")
    assert job.state is JobState.LAUNCHING
    job.launches()
    assert job.state is JobState.SAVING


def test_node_that_goes_before_a_spare_came_costs_nothing_either(running):
    job = running(2)
    job.hardware("n-1", "drain").goes("n-1")
    assert job.incident.cause == "planned"
    job.done(fx.Kill).join("n-2").launches()
    assert not job.record.restarts
    assert not job.record.excluded


def test_silence_of_a_draining_node_costs_nothing(running):
    job = running(2)
    job.hardware("n-1", "drain")
    job.silent.add("n-1")
    job.train(16)
    assert job.incident.cause == "planned"


def test_drained_spare_is_let_go_and_replaced(running):
    job = running(2, spare_nodes=1)
    job.heard(fx.Acquire)
    job.hardware("n-2", "drain").hardware("n-2", "drain")
    assert [r.node for r in job.heard(fx.Release)] == ["n-2"]
    assert [a.count for a in job.heard(fx.Acquire)] == [1]
    assert job.state is JobState.RUNNING


def test_drained_node_is_not_chosen_at_the_next_restart(running):
    job = running(2, spare_nodes=0)
    job.hardware("n-1", "drain").exit(0, sig=9).done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    job.join("n-2")
    assert job.record.assignment == ("n-0", "n-2")


def test_node_that_comes_back_after_maintenance_serves_again(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "drain").all_exit(76).done(fx.Kill).launches()
    job.agent_restarts("n-1")
    assert not job.record.draining
    job.goes("n-0").done(fx.Kill)
    assert set(job.record.assignment) == {"n-1", "n-2"}


def test_preemption_without_notice_is_planned(running):
    job = running(2, spare_nodes=1)
    job.goes("n-1", planned=True).done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    assert not job.record.restarts
    assert not job.record.excluded
