"""Which state the next attempt restores when nodes hold snapshots in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit, is_on_lineage
from megascale.core.contract.policy import RecoveryOverride
from megascale.core.state.goodput import GoodputPhase


def holds(job, node, *snapshots):
    """The Kill answer of a node: (step, attempt) of what all its ranks have in memory."""
    for step, attempt in snapshots:
        job.tell(ev.SnapshotReady(node, attempt, step))


def crash(job, **snapshots):
    """Rank 1 dies; the nodes say what they hold, then the next attempt is launched."""
    job.exit(1, sig=9)
    for node, held in snapshots.items():
        holds(job, node.replace("_", "-"), *held)
    job.done(fx.Kill)
    return job.heard(fx.Launch)[-1]


@pytest.fixture
def job(running):
    script = running(2, memory_snapshots=True, spare_nodes=1, node_blame_limit=99.0)
    script.train(4).commit(5).train(5)
    script.heard(fx.Launch)
    return script


def test_newest_snapshot_in_common_is_restored(job):
    launch = crash(job, n_0=[(9, 1), (10, 1)], n_1=[(8, 1), (9, 1)])
    assert (launch.resume, launch.tier) == (Commit(9, 1), "memory")
    assert job.record.lineage[2] == Commit(9, 1)


def test_reports_of_older_snapshots_do_not_hide_the_newest(job):
    for step in range(6, 11):
        holds(job, "n-0", (step, 1))
        holds(job, "n-1", (step, 1))
    assert crash(job).resume == Commit(10, 1)


def test_without_one_in_common_storage_serves(job):
    launch = crash(job, n_0=[(9, 1), (10, 1)], n_1=[(7, 1), (8, 1)])
    assert (launch.resume, launch.tier) == (Commit(5, 1), "durable")


def test_node_that_says_nothing_means_storage(job):
    assert crash(job, n_0=[(9, 1), (10, 1)]).tier == "durable"


def test_snapshot_no_newer_than_the_commit_is_left(job):
    job.commit(10)
    launch = crash(job, n_0=[(9, 1), (10, 1)], n_1=[(9, 1), (10, 1)])
    assert (launch.resume, launch.tier) == (Commit(10, 1), "durable")


def test_first_commit_is_not_waited_for(running):
    job = running(2, memory_snapshots=True)
    job.train(3)
    launch = crash(job, n_0=[(3, 1), (4, 1)], n_1=[(3, 1), (4, 1)])
    assert (launch.resume, launch.tier) == (Commit(4, 1), "memory")


def test_disabled_tier_is_never_used(running):
    job = running(2)
    job.train(9).commit(5)
    assert crash(job, n_0=[(9, 1), (10, 1)], n_1=[(9, 1), (10, 1)]).tier == "durable"


def test_replaced_node_means_storage(job):
    job.goes("n-1")
    holds(job, "n-0", (9, 1), (10, 1))
    holds(job, "n-2", (9, 1), (10, 1))
    job.done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert launch.nodes == ("n-0", "n-2")
    assert (launch.resume, launch.tier) == (Commit(5, 1), "durable")


def test_changed_spec_means_storage(job):
    job.tell(ev.SpecChanged(job.core.policy, "r2", restart=True))
    assert crash(job, n_0=[(10, 1)], n_1=[(10, 1)]).tier == "durable"


def test_branch_cut_off_is_never_restored(job):
    assert crash(job, n_0=[(9, 1)], n_1=[(9, 1), (10, 1)]).resume == Commit(9, 1)
    launch = crash(job, n_0=[(9, 1), (10, 1)], n_1=[(9, 1), (10, 1)])
    assert (launch.resume, launch.tier) == (Commit(9, 1), "memory")
    job.launches().train(2)
    stale = [(11, 2), (12, 2)]
    assert crash(job, n_0=stale, n_1=stale).tier == "durable"


def test_damaged_snapshot_falls_back_to_storage(job):
    both = [(9, 1), (10, 1)]
    assert crash(job, n_0=both, n_1=both).tier == "memory"
    detail = {"step": 10, "attempt": 1, "tier": "memory"}
    job.exit(1, code=1, error="CheckpointCorruptError", message="tensors: checksum", error_detail=detail)
    assert (job.incident.cause, job.incident.action) == ("checkpoint_corrupt", "roll_back")
    for node in ("n-0", "n-1"):
        holds(job, node, *both)
    job.done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert (launch.resume, launch.tier) == (Commit(5, 1), "durable")
    job.launches().train(3)
    again = crash(job, n_0=[(8, 3), (9, 3)], n_1=[(8, 3), (9, 3)])
    assert (again.resume, again.tier) == (Commit(9, 3), "memory")


def test_wrong_numbers_distrust_what_is_in_memory(job):
    assert crash(job, n_0=[(10, 1)], n_1=[(10, 1)]).tier == "memory"
    job.launches()
    job.train(3, loss=float("nan"))
    assert (job.incident.cause, job.incident.action) == ("numerics", "roll_back")
    holds(job, "n-0", (12, 2), (13, 2))
    holds(job, "n-1", (12, 2), (13, 2))
    job.done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert (launch.resume, launch.tier) == (Commit(5, 1), "durable")


def test_restarted_agent_says_what_it_found(job):
    holds(job, "n-1", (9, 1), (10, 1))
    job.agent_restarts("n-1")
    assert job.incident.cause == "node_lost"
    holds(job, "n-0", (9, 1), (10, 1))
    job.done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert (launch.nodes, launch.resume, launch.tier) == (("n-0", "n-1"), Commit(10, 1), "memory")


def test_container_restart_forgets_until_the_new_agent_speaks(running):
    rule = RecoveryOverride("restart_container", cause="crash")
    job = running(2, memory_snapshots=True, overrides=(rule,))
    job.train(9).commit(5).heard(fx.Launch)
    job.exit(1, sig=9)
    for node in ("n-0", "n-1"):
        holds(job, node, (10, 1))
    job.done(fx.Kill)
    assert job.heard(fx.RestartSlot)
    assert not job.heard(fx.Launch)
    assert list(job.core.live.snapshots) == ["n-0"]
    holds(job, "n-1", (10, 1))
    job.agent_restarts("n-1")
    assert job.heard(fx.Launch)[-1].tier == "memory"


def test_lost_node_takes_its_snapshots_with_it(job):
    holds(job, "n-1", (10, 1))
    job.goes("n-1")
    assert "n-1" not in job.core.live.snapshots


def test_driver_that_takes_over_asks_again(job):
    job.exit(1, sig=9)
    for node in ("n-0", "n-1"):
        holds(job, node, (10, 1))
    job.driver_restarts()
    job.join("n-0", "n-1", attempt=1)
    for node in ("n-0", "n-1"):
        holds(job, node, (9, 1), (10, 1))
    job.done(fx.Kill)
    assert job.heard(fx.Launch)[-1].resume == Commit(10, 1)


def test_only_steps_after_the_snapshot_are_lost_work(job):
    ledger = job.record.ledger
    crash(job, n_0=[(9, 1), (10, 1)], n_1=[(9, 1), (10, 1)])
    assert ledger.seconds.get(GoodputPhase.LOST_WORK, 0.0) == pytest.approx(0.0)
    job.launches().train(9)
    crash(job, n_0=[(16, 2)], n_1=[(16, 2)])
    assert ledger.seconds[GoodputPhase.LOST_WORK] == pytest.approx(4 * job.step_s)


def test_snapshots_do_not_count_as_the_cost_of_saving(job):
    saves, ledger = job.record.saves, job.record.ledger
    before_s = saves.stall_s
    job.train(1, stall_seconds=0.75, snapshot_seconds=0.25)
    assert saves.stall_s - before_s == pytest.approx(0.5)
    assert ledger.seconds[GoodputPhase.CHECKPOINT_STALL] == pytest.approx(0.75)


def test_long_row_of_restarts_from_memory_keeps_the_last_commit_in_reach(job):
    endless = {"node_blame_limit": 1e9, "lemon_incidents": 10**6, "max_restarts": 10**6}
    job.core.policy = replace(job.core.policy, **endless)
    for step in range(11, 91):
        attempt = job.record.attempt
        held = [(step, attempt)]
        job.train(1)
        assert crash(job, n_0=held, n_1=held).resume == Commit(step, attempt)
        job.done(fx.Launch)
        job.heartbeat("n-0", "n-1", step=step)
        assert is_on_lineage(Commit(5, 1), job.record.lineage, job.record.attempt)
    assert len(job.record.lineage) <= 64
    job.core.live.snapshots.clear()
    assert crash(job).resume == Commit(5, 1)
