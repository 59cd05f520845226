"""What a launch is decided from and what it leaves behind; waiting for nodes; shrinking and growing."""

from __future__ import annotations

import dataclasses

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobState, NodeStatus


def test_a_launch_says_what_it_starts_and_from_where(running):
    job = running(2).train(5).commit(4).exit(1, sig=9).done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert (launch.attempt, launch.nodes, launch.resume) == (2, ("n-0", "n-1"), Commit(4, 1))
    assert launch.reason == "attempt 2 on 2 nodes, from step 4 of attempt 1"
    assert launch.lineage == {1: None, 2: Commit(4, 1)}
    assert (launch.tier, launch.save_every_steps, launch.revision) == ("durable", 0, None)


def test_a_launch_from_memory_says_so(running):
    job = running(2, memory_snapshots=True).train(5).commit(2).exit(1, sig=9)
    for node in ("n-0", "n-1"):
        job.tell(ev.SnapshotReady(node, 1, 5))
    launch = job.done(fx.Kill).heard(fx.Launch)[-1]
    assert (launch.tier, launch.resume) == ("memory", Commit(5, 1))
    assert launch.reason == "attempt 2 on 2 nodes, from step 5 of attempt 1 in memory"


def test_a_launch_begins_with_nothing_of_the_attempt_before(running):
    job = running(2).train(5, stall_seconds=2.0, snapshot_seconds=1.0).commit(4)
    job.exit(0, 0).exit(1, sig=9).done(fx.Kill)
    live = job.core.live
    assert (live.step, live.phase, live.progress_at, live.quiet_until) == (4, "startup", job.now, 0.0)
    assert (live.exits, live.pace, live.probes) == ({}, [], {})
    saves = job.record.saves
    assert (saves.attempt_stall_s, saves.attempt_snapshot_s) == (0.0, 0.0)
    assert live.milestones.first_step == set()
    assert (live.numerics.step, live.numerics.good_step, live.numerics.count) == (4, 4, 0)
    assert job.record.plan is None


def test_the_startup_bound_is_learnt_only_for_nodes_that_ran_the_job(running):
    job = running(2, spare_nodes=1, startup_s=600.0).train(3).commit(3)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).wait(20.0).train(5)
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.deadlines["startup"] - job.now == pytest.approx(105.0)
    job.done(fx.Launch).train(5)
    job.goes("n-1").done(fx.Kill)
    assert job.record.deadlines["startup"] - job.now == 600.0


def test_a_first_launch_from_scratch_teaches_no_bound(running):
    job = running(2, startup_s=600.0).train(3)
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.deadlines["startup"] - job.now == 600.0


def test_nodes_are_asked_for_once_and_less_those_that_are_promised(start):
    job = start(3, spare_nodes=1)
    assert [(a.count, a.reason) for a in job.heard(fx.Acquire)] == [(4, "4 of 4 nodes are missing")]
    job.join("n-0")
    job.tell(ev.Tick())
    assert not job.heard(fx.Acquire)
    assert job.record.outstanding == 3
    assert job.record.deadlines["acquired"] == job.now + job.core.policy.startup_s
    job.join("n-1", "n-2", "n-3")
    assert job.record.outstanding == 0
    assert "acquired" not in job.record.deadlines


def test_excluded_draining_and_lost_nodes_are_replaced_and_the_excluded_avoided(running):
    job = running(3, spare_nodes=2)
    job.heard(fx.Acquire)
    job.command("evict", "n-4").hardware("n-3", "drain")
    assert [(a.count, a.avoid) for a in job.heard(fx.Acquire)] == [(1, ("n-4",)), (1, ("n-4",))]
    job.goes("n-0")
    (acquire,) = job.heard(fx.Acquire)
    assert (acquire.count, acquire.reason) == (1, "1 of 5 nodes are missing")


def test_spares_that_wait_for_the_first_launch_are_asked_for_with_it(start):
    job = start(2, spare_nodes=3, spares_after_launch=True)
    assert [a.reason for a in job.heard(fx.Acquire)] == ["2 of 2 nodes are missing"]
    job.join("n-0", "n-1")
    assert [a.reason for a in job.heard(fx.Acquire)] == ["3 of 5 nodes are missing"]


def test_no_node_is_asked_for_while_a_request_is_held_off(running):
    job = running(2, spare_nodes=1).goes("n-2").refuse(fx.Acquire)
    job.heard(fx.Acquire)
    job.command("evict", "n-1")
    assert not job.heard(fx.Acquire)


def test_a_job_shrinks_to_the_largest_layout_that_its_nodes_fill(running):
    job = running(6, min_nodes=2, node_counts=(6, 4, 3, 2), shrink_after_s=60.0, max_nodes_per_hour=9)
    job.goes("n-1").goes("n-2").done(fx.Kill)
    assert job.record.deadlines["shrink"] == job.now + 60.0
    job.wait(60.5)
    assert len(job.record.assignment) == 4
    assert job.incident.action == "shrink"
    assert job.incident.decision.endswith("; no spare came in 60 s, going on with 4 nodes")
    assert job.record.ranks == 4
    assert (job.record.waiting_since, job.record.refusals) == (0.0, 0)


@pytest.mark.parametrize(("lost", "left"), [(3, 3), (4, 0)])
def test_a_job_shrinks_to_its_least_size_and_no_further(running, lost, left):
    job = running(6, min_nodes=3, node_counts=(6, 5, 3, 2), shrink_after_s=10.0, max_nodes_per_hour=9)
    for index in range(lost):
        job.goes(f"n-{index}")
    job.done(fx.Kill).wait(30.0)
    assert (len(job.record.assignment) if job.state is JobState.LAUNCHING else 0) == left


def test_a_job_that_may_not_shrink_waits(running):
    job = running(2, shrink_after_s=10.0).goes("n-1").done(fx.Kill)
    assert "shrink" not in job.record.deadlines
    assert job.record.waiting_since == job.now
    began = job.now
    job.wait(30.0)
    assert job.state is JobState.ASSEMBLING
    assert job.record.waiting_since == began
    assert job.record.ledger.phase == "waitingForNodes"


def shrunk(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=10.0, grow_after_s=100.0)
    return job.goes("n-1").done(fx.Kill).wait(11.0).launches()


def test_growing_waits_for_as_many_nodes_as_the_job_has(running):
    job = shrunk(running)
    assert "grow" not in job.record.deadlines
    job.join("n-3")
    assert job.record.deadlines["grow"] == job.now + 100.0
    since = job.record.deadlines["grow"]
    job.train(10).join("n-4")
    assert job.record.deadlines["grow"] == since


def test_a_node_that_went_again_puts_off_growing(running):
    job = shrunk(running).join("n-3")
    job.goes("n-3").train(101)
    assert job.state is JobState.RUNNING
    assert not job.heard(fx.SaveNow)
    job.join("n-5").train(99)
    assert job.state is JobState.RUNNING
    job.train(2)
    assert job.state is JobState.SAVING
    assert job.heard(fx.SaveNow)[0].reason == "3 nodes are there again"


def test_a_job_of_full_size_does_not_grow(running):
    job = running(2, spare_nodes=1).train(5)
    assert "grow" not in job.record.deadlines


def test_nodes_gone_for_an_hour_are_forgotten_at_a_launch(running):
    job = running(2, spare_nodes=3, spares_after_launch=False)
    job.goes("n-2").goes("n-3").command("evict", "n-4")
    job.live_nodes["n-2"].heard_until = job.now - 3600.0
    job.live_nodes["n-3"].heard_until = job.now - 3599.0
    job.live_nodes["n-4"].heard_until = job.now - 9999.0
    job.exit(0, sig=9).done(fx.Kill)
    assert set(job.live_nodes) == {"n-0", "n-1", "n-3", "n-4"}


def test_a_kill_is_sent_to_the_nodes_that_are_there(running):
    job = running(3, kill_s=7.0).goes("n-1")
    (kill,) = job.heard(fx.Kill)
    assert (kill.attempt, kill.nodes, kill.deadline_s) == (1, ("n-0", "n-2"), 7.0)
    assert kill.reason == "i-1: n-1: pod deleted"


def test_an_ended_job_holds_nothing(running):
    job = running(2, spare_nodes=1).hardware("n-2", "drain").goes("n-1")
    job.command("stop").done(fx.Kill)
    record = job.record
    assert (record.state, record.finish_state) == (JobState.FINISHED, "stopped")
    assert (record.assignment, record.spares, record.lost, record.draining) == ((), (), {}, {})
    assert record.deadlines == {}
    assert [pending.kind for pending in record.pending.values()] == ["Finish"]
    assert job.incident.outcome == "job stopped"
    assert record.waiting_since == 0.0
    assert job.core.next_deadline() is None


def test_a_failed_job_pages_with_the_reason(running):
    job = running(2, max_restarts=0).exit(1, sig=9)
    (page,) = job.heard(fx.Page)
    assert page.incident == job.incident.id
    assert page.reason == (
        "job fails: rank 1 on n-1 was killed by SIGKILL; all 0 restarts of recovery.maxRestarts are used"
    )
    job.done(fx.Kill)
    assert job.heard(fx.Finish)[0].reason == page.reason.removeprefix("job fails: ")


def test_an_exclusion_says_which_node_why_and_in_which_incident(running):
    job = running(2, spare_nodes=1, quarantine=True).hardware("n-1", "xid", 79)
    (out,) = job.heard(fx.Exclude)
    assert (out.node, out.incident, out.reason) == ("n-1", job.incident.id, "xid-79 on n-1")
    (wish,) = job.heard(fx.RequestQuarantine)
    assert (wish.node, wish.incident, wish.reason) == ("n-1", job.incident.id, "xid-79 on n-1")
    kept = job.record.excluded["n-1"]
    assert (kept.reason, kept.incident, kept.at, kept.retired) == (out.reason, out.incident, job.now, False)
    assert job.record.exclusion_times == [job.now]
    job.done(fx.Kill)
    (released,) = job.heard(fx.Release)
    assert (released.node, released.reason) == ("n-1", out.reason)
    assert job.live_nodes["n-1"].status is NodeStatus.GONE
    assert job.live_nodes["n-1"].released


def test_reasons_of_the_newest_exclusions_are_kept(running):
    job = running(1, spare_nodes=20)
    for index in range(1, 21):
        job.command("evict", f"n-{index}")
    reasons = [out.reason is not None for out in job.record.excluded.values()]
    assert reasons == [False] * 4 + [True] * 16


def test_a_long_reason_is_cut_where_it_is_kept(running):
    job = running(2, spare_nodes=1)
    job.tell(ev.ManualCommand("evict", "x" * 500, "n-2"))
    (out,) = job.heard(fx.Exclude)
    assert out.reason == f"n-2 evicted: {'x' * 97}"
    assert job.record.excluded["n-2"].reason == out.reason


def test_the_last_page_about_exclusions_says_that_it_is_the_last(running):
    job = running(40, max_nodes_per_hour=0)
    for index in range(40):
        job.hardware(f"n-{index}", "xid", 79)
    last = job.heard(fx.Page)[-1]
    assert last.reason.endswith("; the last page of this kind about this job for up to 60 minutes")
    assert last.incident is not None


def test_the_newest_commits_on_the_lineage_are_kept(running):
    job = running(1).train(40)
    for step in range(1, 41):
        job.commit(step)
    assert job.record.commits == [Commit(step, 1) for step in range(9, 41)]


def test_a_rolled_back_checkpoint_pages_once(running):
    job = running(1).train(5).commit(3).commit(5)
    detail = {"step": 5, "attempt": 1}
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum", error_detail=detail)
    (page,) = job.heard(fx.Page)
    assert page.reason == f"checkpoint of step 5, attempt 1 is not restored again: {job.incident.reason}"
    assert page.incident == job.incident.id
    assert job.record.memory_from == 2
    job.done(fx.Kill)
    job.exit(0, 1, error="CheckpointCorruptError", message="checksum", error_detail=detail)
    assert not job.heard(fx.Page)
    assert job.record.distrusted == [Commit(5, 1)]


def test_another_size_starts_the_pace_anew(running):
    job = running(3, min_nodes=2, node_counts=(3, 2), shrink_after_s=10.0).train(50)
    before = job.core.live.speed
    job.exit(0, sig=9).recovers()
    assert job.core.live.speed is before
    job.goes("n-1").done(fx.Kill).wait(11.0)
    assert job.core.live.speed is not before


def test_new_sizes_are_used_at_the_next_launch(running):
    job = running(3, min_nodes=2)
    job.tell(ev.SpecChanged(dataclasses.replace(job.core.policy, nodes=2), "b", restart=True))
    job.exit(0, sig=9).done(fx.Kill)
    assert (job.record.assignment, job.record.ranks) == (("n-0", "n-1"), 2)
