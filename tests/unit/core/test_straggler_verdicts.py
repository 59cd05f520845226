from __future__ import annotations

import random

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState


def steps_of(job, count, slow=None, by=1.1):
    draw = random.Random(7)
    for _ in range(count):
        job.train(1)
        times = [draw.gauss(1.0, 0.005) * (by if rank == slow else 1.0) for rank in range(job.record.ranks)]
        job.tell(ev.SegmentTimes(job.record.attempt, job.core.live.step, tuple(times)))
    return job


def suspected(running, **policy):
    job = running(16, spare_nodes=1, **policy)
    steps_of(job, 80, slow=5)
    return job


def verdict(job, healthy):
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], "n-5", healthy, "gemm 11% slow"))
    return job


def test_slow_node_is_probed_before_anything_is_done(running):
    job = suspected(running)
    assert [p.node for p in job.heard(fx.Probe)] == ["n-5"]
    assert job.state is JobState.RUNNING


def test_confirmed_straggler_is_swapped_after_a_save(running):
    job = verdict(suspected(running), False)
    assert job.state is JobState.SAVING
    assert (job.incident.cause, job.incident.node) == ("straggler", "n-5")
    job.all_exit(76).done(fx.Kill)
    assert job.record.assignment[5] == "n-16"
    assert "n-5" in job.record.excluded


def test_node_that_the_probe_finds_sound_stays(running):
    job = verdict(suspected(running), True)
    assert job.state is JobState.RUNNING
    assert not job.record.excluded


def test_probe_that_cannot_tell_is_for_a_person(running):
    job = verdict(suspected(running), None)
    assert job.state is JobState.RUNNING
    assert any("could not tell" in page.reason for page in job.heard(fx.Page))


def test_probe_that_nobody_can_make_is_for_a_person_too(running):
    job = suspected(running)
    job.refuse(fx.Probe, "no prober")
    assert job.state is JobState.RUNNING
    assert any("could not tell" in page.reason for page in job.heard(fx.Page))


def test_without_a_spare_a_slow_node_is_better_than_none(running):
    job = running(16)
    steps_of(job, 80, slow=5)
    verdict(job, False)
    assert job.state is JobState.RUNNING


def test_breaker_keeps_a_slow_node_and_pages(running):
    job = verdict(suspected(running, max_nodes_per_hour=0), False)
    assert job.state is JobState.RUNNING
    assert any("maxNodesPerHour" in page.reason for page in job.heard(fx.Page))


def test_healthy_job_raises_no_suspicion(running):
    job = running(16)
    steps_of(job, 200)
    assert not job.heard(fx.Probe)


def test_straggler_in_shadow_mode(running):
    job = verdict(suspected(running, shadow=("straggler",)), False)
    assert job.state is JobState.RUNNING
    assert job.record.shadowed == {"straggler": 1}


def test_times_of_another_attempt_or_size_are_void(running):
    job = running(2)
    job.tell(ev.SegmentTimes(7, 1, (1.0, 1.0)))
    job.tell(ev.SegmentTimes(1, 1, (1.0,)))
    assert job.core.live.stragglers is None
