from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import RecoveryOverride
from megascale.core.state.record import JobState

DAY_S = 86400.0
HOUR_S = 3600.0


def crash(job, rank=1):
    return job.exit(rank, sig=11).recovers()


def test_first_crash_restarts_in_place(running):
    job = running(2, spare_nodes=1)
    job.train(3).exit(1, sig=11)
    assert job.incident.action == "restart_in_place"
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-1")


def test_incident_has_every_stage_in_order(running):
    job = running(2)
    job.train(10).commit(5).exit(1, sig=11).recovers().train(8)
    incident = job.record.incidents[-1]
    assert incident.outcome == "recovered"
    stages = [
        "fault",
        "detected",
        "decided",
        "stopped",
        "launched",
        "groups",
        "loaded",
        "firstStep",
        "backToSpeed",
    ]
    times = [incident.milestones[name].at for name in stages]
    assert times == sorted(times)


def test_node_that_keeps_crashing_is_replaced(running):
    job = running(2, spare_nodes=1)
    crash(job).train(20)
    crash(job).train(20)
    job.exit(1, sig=11)
    assert job.incident.action == "replace_node"
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    assert "n-1" in job.record.excluded


def test_blame_decays(running):
    job = running(2, spare_nodes=1, blame_half_life_s=20.0, lemon_incidents=99)
    for _ in range(5):
        crash(job).train(100).commit(job.core.live.step)
    assert not job.record.excluded


def test_lemon_is_retired_however_long_ago_its_last_incident_was(running):
    job = running(2, spare_nodes=1, lemon_incidents=3, blame_half_life_s=3600.0)
    history = [job.now - 9 * DAY_S, job.now - 4 * DAY_S]
    job.record.history["n-1"] = history
    job.exit(1, sig=11)
    assert job.incident.action == "replace_node"
    assert "lemon" in job.incident.decision
    job.recovers()
    assert job.record.excluded["n-1"].retired
    job.agent_restarts("n-1")
    job.join("n-1", checked=True)
    assert "n-1" in job.record.excluded
    job.command("release", "n-1")
    assert "n-1" not in job.record.excluded


def test_burst_of_incidents_makes_no_lemon(running):
    job = running(2, spare_nodes=1, lemon_incidents=2, node_blame_limit=99.0)
    crash(job).train(20)
    crash(job).train(20)
    assert not job.record.excluded


def test_incidents_of_one_burst_count_once_for_a_lemon_later_too(running):
    patient = {"silence_s": DAY_S, "hang_margin_s": DAY_S}
    job = running(2, spare_nodes=1, lemon_incidents=3, node_blame_limit=99.0, **patient)
    for _ in range(3):
        crash(job).train(20)
    assert len(job.record.history["n-1"]) == 1
    job.now += 2 * HOUR_S
    job.train(1).exit(1, sig=11)
    assert job.incident.action == "restart_in_place"
    assert len(job.record.history["n-1"]) == 2


def test_same_step_failing_again_fails_the_job(running):
    job = running(2, no_progress_limit=3, node_blame_limit=99.0)
    job.train(5).commit(5)
    for _ in range(3):
        job.train(job.record.best_step - job.core.live.step)
        job.exit(1, 1, error="ValueError", message="bad batch").done(fx.Kill).done(fx.Launch).heartbeat(
            "n-0", "n-1", step=6
        )
    job.exit(1, 1, error="ValueError", message="bad batch")
    assert job.incident.action == "fail_job"
    assert "step 7" in job.incident.decision
    job.done(fx.Kill)
    assert job.record.finish_state == "failed"
    assert job.heard(fx.Page)


def test_failing_at_various_steps_is_given_more_tries(running):
    job = running(2, no_progress_limit=2, node_blame_limit=99.0)
    job.train(60)
    for steps in (10, 30, 20, 40):
        crash(job).train(steps)
    assert job.state is JobState.RUNNING


def test_progress_clears_the_breaker(running):
    job = running(2, no_progress_limit=2, node_blame_limit=99.0)
    for _ in range(6):
        crash(job).train(5).commit(job.core.live.step)
    assert job.state is JobState.RUNNING


def test_lost_nodes_do_not_look_like_a_failing_step(running):
    job = running(2, spare_nodes=6, no_progress_limit=2, max_nodes_per_hour=99)
    for index in range(4):
        job.goes(job.record.assignment[1]).recovers()
        assert job.state is JobState.RUNNING, index


@pytest.mark.parametrize(
    ("policy", "words"),
    [({"max_restarts": 1}, "recovery.maxRestarts"), ({"budgets": {"crash": 1}}, "recovery.budgets.crash")],
)
def test_budget_is_a_bound(running, policy, words):
    job = running(2, **policy)
    crash(job).train(5).exit(1, sig=11)
    assert job.incident.action == "fail_job"
    assert words in job.incident.decision


def test_budget_of_one_cause_leaves_others(running):
    job = running(2, budgets={"user_code": 0})
    crash(job)
    assert job.state is JobState.RUNNING


def test_eviction_by_hand_costs_no_budget_and_saves_first(running):
    job = running(2, spare_nodes=1)
    job.train(5).command("evict", "n-1")
    assert job.state is JobState.SAVING
    job.commit(7).all_exit(76).done(fx.Kill)
    assert job.resumed_from() == Commit(7, 1)
    assert job.record.assignment == ("n-0", "n-2")
    assert not job.record.restarts


def test_eviction_of_an_idle_node_does_not_disturb_training(running):
    job = running(2, spare_nodes=1)
    job.command("evict", "n-2")
    assert job.state is JobState.RUNNING
    assert [r.node for r in job.heard(fx.Release)] == ["n-2"]
    job.train(10)
    assert job.record.ledger.phase == "productive"
    assert job.incident.outcome == "training was not interrupted"


def test_eviction_while_nodes_are_waited_for_lets_the_node_go(running):
    job = running(2)
    job.goes("n-1").done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    job.heard(fx.Release)
    job.command("evict", "n-0")
    assert [r.node for r in job.heard(fx.Release)] == ["n-0"]
    job.join("n-2", "n-3")
    assert job.record.assignment == ("n-2", "n-3")


def test_hourly_bound_stops_exclusions_and_pages(running):
    job = running(2, spare_nodes=9, max_nodes_per_hour=1, node_blame_limit=0.5, no_progress_limit=99)
    job.exit(1, sig=11).recovers().exit(1, sig=11)
    assert len(job.record.excluded) == 1
    assert any("maxNodesPerHour" in page.reason for page in job.heard(fx.Page))
    assert job.recovers().state is JobState.RUNNING


def test_a_node_that_may_not_be_excluded_pages_once_an_hour(running):
    job = running(2, max_nodes_per_hour=0)
    for _ in range(3):
        job.hardware("n-1", "xid", 79).train(30)
    assert len(job.heard(fx.Page)) == 1
    job.hardware("n-0", "xid", 79)
    assert len(job.heard(fx.Page)) == 1
    job.record.refused = {name: at - 3600.0 for name, at in job.record.refused.items()}
    job.hardware("n-1", "xid", 79)
    assert len(job.heard(fx.Page)) == 1


def test_nodes_that_may_not_be_excluded_do_not_flood_the_pager(running):
    job = running(40, max_nodes_per_hour=0)
    for index in range(40):
        job.hardware(f"n-{index}", "xid", 79)
    pages = job.heard(fx.Page)
    assert len(pages) == 16
    assert "the last page of this kind" in pages[-1].reason


def test_evictions_by_hand_do_not_use_up_the_bound(running):
    job = running(2, spare_nodes=9, max_nodes_per_hour=1)
    for index in (2, 3, 4):
        job.command("evict", f"n-{index}")
    job.hardware("n-1", "xid", 79)
    assert job.incident.action == "replace_node"


def test_share_of_excluded_nodes_is_bounded_over_time(running):
    job = running(4, spare_nodes=9, max_nodes_per_hour=2, node_blame_limit=0.5, max_excluded_share=0.25)
    for _ in range(4):
        job.exit(1, sig=11).recovers().train(30)
        job.record.exclusion_times = [at - 3600.0 for at in job.record.exclusion_times]
    assert len(job.record.excluded) == 2
    assert any("within a week" in page.reason for page in job.heard(fx.Page))


def test_container_is_restarted_before_the_node_is_given_up(running):
    job = running(2)
    job.train(5).exit(1, sig=9).done(fx.Kill).fails(fx.Launch, "zygote did not answer", ("n-1",))
    assert job.incident.action == "restart_container"
    job.done(fx.Kill)
    assert [r.node for r in job.heard(fx.RestartSlot)] == ["n-1"]
    assert job.state is JobState.ASSEMBLING
    job.heartbeat("n-1")
    assert job.state is JobState.ASSEMBLING
    job.agent_restarts("n-1")
    assert job.state is JobState.LAUNCHING
    job.fails(fx.Launch, "zygote did not answer", ("n-1",))
    assert job.incident.action == "replace_node"


def test_container_is_restarted_at_most_once_in_its_time(running):
    job = running(2, container_restart_s=30.0, node_blame_limit=99.0, no_progress_limit=99)

    def launch_fails() -> str:
        job.fails(fx.Launch, "zygote did not answer", ("n-1",)).done(fx.Kill)
        action = job.incident.action
        if action == "restart_container":
            job.agent_restarts("n-1")
        return action

    job.train(5).exit(1, sig=9).done(fx.Kill)
    assert launch_fails() == "restart_container"
    job.wait(29.0)
    assert launch_fails() == "restart_in_place"
    job.wait(1.0)
    assert launch_fails() == "restart_container"


def test_container_that_cannot_be_restarted_loses_its_node(running):
    job = running(2, spare_nodes=0)
    job.train(5).exit(1, sig=9).done(fx.Kill).fails(fx.Launch, "no answer", ("n-1",)).done(fx.Kill)
    job.refuse(fx.RestartSlot).join("n-2")
    assert job.record.assignment == ("n-0", "n-2")


@pytest.mark.parametrize(
    ("rule", "exit_with", "action"),
    [
        (RecoveryOverride("replace_node", cause="crash"), {"sig": 11}, "replace_node"),
        (
            RecoveryOverride("fail_job", error_type="KeyError"),
            {"code": 1, "error": "KeyError", "message": "x"},
            "fail_job",
        ),
        (
            RecoveryOverride("fail_job", message="disk qu.ta"),
            {"code": 1, "error": "OSError", "message": "disk quota"},
            "fail_job",
        ),
        (RecoveryOverride("fail_job", cause="hang"), {"sig": 11}, "restart_in_place"),
        (RecoveryOverride("fail_job", cause="crash", error_type="KeyError"), {"sig": 11}, "restart_in_place"),
    ],
)
def test_rules_of_the_manifest_come_before_the_ladder(running, rule, exit_with, action):
    job = running(2, spare_nodes=1, overrides=(rule,))
    code = exit_with.pop("code", None)
    job.exit(1, code, **exit_with)
    assert job.incident.action == action


def test_first_matching_rule_wins(running):
    job = running(2, overrides=(RecoveryOverride("roll_back", cause="crash"), RecoveryOverride("fail_job")))
    job.train(3).commit(2).commit(4).exit(1, sig=11).done(fx.Kill)
    assert job.resumed_from() == Commit(2, 1)


def test_damaged_checkpoint_is_stepped_over(running):
    job = running(2)
    job.train(5).commit(3).commit(5).exit(1, sig=9).done(fx.Kill).done(fx.Launch)
    detail = {"step": 5, "attempt": 1}
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum", error_detail=detail).done(fx.Kill)
    assert job.resumed_from() == Commit(3, 1)
    assert any("step 5" in page.reason for page in job.heard(fx.Page))


def test_damaged_checkpoint_heard_after_a_rank_that_lost_its_peer_is_what_happened(running):
    job = running(2)
    job.train(5).commit(3).commit(5).exit(1, sig=9).done(fx.Kill).done(fx.Launch)
    job.exit(1, 1, error="RuntimeError", message="gloo: Connection closed by peer")
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum").done(fx.Kill)
    found = job.incident
    assert (found.id, found.cause, found.action) == ("i-2", "checkpoint_corrupt", "roll_back")
    assert job.resumed_from() == Commit(3, 1)


def test_damaged_checkpoint_that_is_not_named_is_the_one_restored(running):
    job = running(2)
    job.train(5).commit(3).commit(5).exit(1, sig=9).done(fx.Kill).done(fx.Launch)
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum").done(fx.Kill)
    assert job.resumed_from() == Commit(3, 1)


def test_no_trusted_checkpoint_means_no_silent_start_from_scratch(running):
    job = running(2)
    job.train(5).commit(5).exit(1, sig=9).done(fx.Kill).done(fx.Launch)
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum").done(fx.Kill)
    assert job.record.finish_state == "failed"
    assert "scratch" in job.record.finish_reason


def test_commits_of_a_cut_branch_do_not_push_out_good_ones(running):
    job = running(1)
    job.train(5).commit(5)
    for step in range(100, 140):
        job.commit(step)
    job.record.distrusted = [c for c in job.record.commits if c.step >= 100]
    job.record.commits = [Commit(5, 1), *job.record.distrusted]
    job.exit(0, sig=9).recovers().train(5)
    for step in range(6, 10):
        job.commit(step)
    assert Commit(9, 2) in job.record.commits
    assert Commit(5, 1) in job.record.commits
    job.commit(150, attempt=1)
    assert Commit(150, 1) not in job.record.commits


def test_fail_at_once_when_nothing_ever_ran_and_the_code_is_wrong(start):
    job = start(1)
    job.join("n-0").done(fx.Launch)
    job.exit(0, 1, error="ModuleNotFoundError", message="No module named 'flash_attn'")
    assert job.incident.action == "fail_job"


def test_the_same_error_later_is_given_a_restart(running):
    job = running(1)
    job.train(50).exit(0, 1, error="ModuleNotFoundError", message="No module named 'flash_attn'")
    assert job.incident.action == "restart_in_place"


def test_quarantine_follows_the_mode(running):
    job = running(2, spare_nodes=1, quarantine=True)
    job.command("evict", "n-1")
    assert [q.node for q in job.heard(fx.RequestQuarantine)] == ["n-1"]
    job.refuse(fx.RequestQuarantine, "bound of the cluster")
    assert any("quarantine refused" in line for line in job.incident.evidence)


def test_launch_failed_on_several_nodes_blames_none(running):
    job = running(2)
    job.exit(0, sig=9).done(fx.Kill).fails(fx.Launch, "no store", ("n-0", "n-1"))
    assert job.incident.node is None
    assert "n-1" not in job.record.blame


def test_page_and_finish_survive_a_driver_restart(running):
    job = running(1, max_restarts=0)
    job.exit(0, sig=9).done(fx.Kill)
    job.said.clear()
    job.driver_restarts()
    assert [f.state for f in job.heard(fx.Finish)] == ["failed"]
    job.tell(ev.Tick())
