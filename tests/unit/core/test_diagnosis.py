from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState


def stalled(job):
    """Steps stop; the bound of 3 steps + 10 s passes."""
    return job.train(20).wait(13.5)


def tell_evidence(job, states=(), **special):
    effect_id = job.heard(fx.CollectEvidence)[-1].effect_id
    for rank, node in enumerate(job.record.assignment):
        fields = {
            "process_state": "S",
            "step": job.core.live.step,
            "phase": "forward",
            **special.get(f"r{rank}", {}),
        }
        job.tell(ev.Evidence(effect_id, node, (ev.RankEvidence(rank=rank, **fields),)))
    return job


def test_stall_is_suspected_after_three_steps_and_a_margin(running):
    job = running(2)
    job.train(20).wait(12.5)
    assert job.state is JobState.RUNNING
    job.wait(1.0)
    assert job.state is JobState.DIAGNOSING
    assert job.heard(fx.CollectEvidence)[0].nodes == ("n-0", "n-1")


def test_stopped_process_is_positive_evidence(running):
    job = stalled(running(3))
    tell_evidence(job, r2={"process_state": "T"})
    assert job.state is JobState.STOPPING
    assert (job.incident.node, job.incident.rank) == ("n-2", 2)
    assert "stopped by a signal" in job.incident.reason


def test_rank_outside_the_collective_is_positive_evidence(running):
    job = stalled(running(3))
    tell_evidence(job, r0={"collectives": 70}, r1={"collectives": 69}, r2={"collectives": 70})
    assert job.incident.rank == 1


def test_stages_of_a_pipeline_count_their_own_collectives(running):
    job = stalled(running(4, pipeline=2))
    tell_evidence(
        job, r0={"collectives": 70}, r1={"collectives": 70}, r2={"collectives": 30}, r3={"collectives": 30}
    )
    assert job.state is JobState.DIAGNOSING


def test_without_positive_evidence_a_flap_is_waited_out(running):
    job = stalled(running(2, flap_tolerance_s=30.0))
    tell_evidence(job)
    assert job.state is JobState.DIAGNOSING
    job.train(3)
    assert job.state is JobState.RUNNING
    assert job.incident.outcome == "recovered by itself"
    assert not job.record.restarts


def test_stall_that_outlasts_a_flap_restarts_on_the_best_suspicion(running):
    job = stalled(running(3, flap_tolerance_s=30.0))
    tell_evidence(job, r1={"process_state": "D"})
    job.wait(31.0)
    assert job.state is JobState.STOPPING
    assert job.incident.node == "n-1"


def test_inconclusive_stall_blames_nobody(running):
    job = stalled(running(2))
    tell_evidence(job).wait(31.0)
    assert job.state is JobState.STOPPING
    assert job.incident.node is None
    assert any("inconclusive" in line for line in job.incident.evidence)


def test_the_one_node_that_does_not_answer_is_suspected(running):
    job = stalled(running(3))
    effect_id = job.heard(fx.CollectEvidence)[-1].effect_id
    for rank in (0, 2):
        job.tell(
            ev.Evidence(effect_id, f"n-{rank}", (ev.RankEvidence(rank, "S", job.core.live.step, "forward"),))
        )
    job.wait(31.0)
    assert job.incident.node == "n-1"


def test_answers_to_an_earlier_question_are_void(running):
    job = stalled(running(2))
    old = job.heard(fx.CollectEvidence)[-1].effect_id
    job.train(1).wait(13.5)
    assert job.state is JobState.DIAGNOSING
    for rank in range(2):
        job.tell(ev.Evidence(old, f"n-{rank}", (ev.RankEvidence(rank, "T"),)))
    assert job.state is JobState.DIAGNOSING


def test_xid_before_a_stall_is_positive_evidence(running):
    job = running(3).train(20)
    job.hardware("n-1", "xid", 74, "NVLink: fatal error detected on link 3").wait(13.5)
    tell_evidence(job)
    assert job.state is JobState.STOPPING
    assert (job.incident.cause, job.incident.node) == ("hardware", "n-1")
    assert job.incident.milestones["fault"].at < job.incident.milestones["detected"].at


def test_xid_during_diagnosis_ends_it(running):
    job = stalled(running(3))
    job.hardware("n-2", "xid", 119, "Timeout waiting for RPC from GPU2 GSP!")
    assert job.state is JobState.STOPPING
    assert (job.incident.cause, job.incident.node) == ("hardware", "n-2")


def test_node_lost_during_diagnosis_is_what_the_stall_was(running):
    job = stalled(running(2, spare_nodes=1))
    first = job.incident.id
    job.goes("n-1")
    assert job.incident.id == first
    assert job.incident.cause == "node_lost"
    assert any("no step for" in line for line in job.incident.evidence)
    job.recovers()
    assert job.record.next_incident == 2


@pytest.mark.parametrize("phase", ["checkpoint", "evaluation", "compile", "data"])
def test_declared_long_phases_are_no_hangs(running, phase):
    job = running(2).train(20)
    job.now += 1.0
    job.heartbeat("n-1", phase=phase)
    for _ in range(50):
        job.now += 2.0
        job.heartbeat("n-0").heartbeat("n-1", phase=phase)
        job.tell(ev.Tick())
    assert job.state is JobState.RUNNING


def test_length_of_a_phase_is_learnt(running):
    job = running(1).train(20)
    for _ in range(5):
        job.now += 2.0
        job.heartbeat("n-0", phase="data")
    job.train(5)
    job.now += 1.0
    job.heartbeat("n-0", phase="data")
    for _ in range(40):
        job.now += 1.5
        job.heartbeat("n-0", phase="data")
        job.tell(ev.Tick())
        if job.state is not JobState.RUNNING:
            break
    assert 30.0 < job.now - job.core.live.progress_at < 70.0


def test_launch_time_is_learnt_from_launches_that_restored(running):
    job = running(1, startup_s=3600.0, node_blame_limit=99.0).train(3).commit(3)
    for _ in range(2):
        job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).wait(20.0).train(5)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).wait(130.0)
    assert job.incident.cause == "launch_failed"


def test_bound_that_proved_too_short_is_forgotten(running):
    job = running(2, startup_s=3600.0, node_blame_limit=99.0).train(3).commit(3)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).wait(5.0).train(5)
    job.exit(0, sig=9).done(fx.Kill).done(fx.Launch).wait(61.0)
    assert job.incident.cause == "launch_failed"
    job.done(fx.Kill).done(fx.Launch).wait(300.0).train(1)
    assert job.state is JobState.RUNNING


def test_shadow_mode_pages_once_and_keeps_watching(running):
    job = stalled(running(2, shadow=("hang",)))
    tell_evidence(job, r1={"process_state": "T"})
    job.wait(2000.0)
    assert job.state is JobState.DIAGNOSING
    assert job.record.shadowed == {"hang": 1}
    assert len(job.heard(fx.Page)) == 1
    assert not job.record.restarts
    job.train(1)
    assert job.state is JobState.RUNNING
    job.exit(1, sig=9)
    assert job.state is JobState.STOPPING
