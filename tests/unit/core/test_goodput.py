from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.core.contract import effects as fx
from megascale.core.contract.events import RankExited
from megascale.core.state.goodput import GoodputPhase, Ledger
from megascale.core.state.record import JobState

PHASES = list(GoodputPhase)
ACTIONS = st.one_of(
    st.tuples(st.just("switch"), st.sampled_from(PHASES), st.sampled_from(["", "crash", "hang"])),
    st.tuples(st.just("move"), st.sampled_from(PHASES), st.floats(0, 500)),
    st.tuples(st.just("mark"), st.integers(0, 50), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 50), st.just(0)),
)


@given(st.lists(st.tuples(st.floats(0, 1000), ACTIONS), max_size=60))
def test_phases_always_sum_to_wall_time(script):
    ledger, now = Ledger(), 100.0
    ledger.start(now)
    for seconds, (action, first, second) in script:
        now += seconds
        if action == "switch":
            ledger.switch(first, now, cause=second, node=second and f"n-{second}")
        elif action == "move":
            ledger.charge(now)
            ledger.move(first, GoodputPhase.DETECTION, second)
        elif action == "mark":
            ledger.charge(now)
            ledger.mark_step(first, ledger.productive_s())
        else:
            ledger.charge(now)
            ledger.lose_work_after(first)
    ledger.charge(now)
    assert ledger.wall_s() == pytest.approx(now - 100.0)
    assert min(ledger.seconds.values(), default=0.0) >= -1e-6


@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(0, 200)), min_size=1, max_size=300))
def test_accounts_are_bounded_and_keep_their_sum(script):
    ledger, now = Ledger(), 1.0
    ledger.start(now)
    for seconds, node in script:
        ledger.switch(GoodputPhase.RECOVERY, now, cause="crash", node=f"n-{node}")
        now += seconds
        ledger.charge(now)
    assert len(ledger.by_node) <= 49
    assert sum(sum(phases.values()) for phases in ledger.by_node.values()) == pytest.approx(now - 1.0)


@pytest.mark.parametrize(("step", "lost"), [(10, 60.0), (15, 45.0), (20, 30.0), (0, 90.0), (99, 0.0)])
def test_lost_work_is_priced_by_marks(step, lost):
    ledger = Ledger()
    ledger.start(1.0)
    ledger.switch(GoodputPhase.PRODUCTIVE, 1.0)
    for at, mark in ((31.0, 10), (61.0, 20)):
        ledger.charge(at)
        ledger.mark_step(mark, ledger.productive_s())
    ledger.charge(91.0)
    assert ledger.lose_work_after(step) == pytest.approx(lost)


def test_whole_life_adds_up_and_names_causes(running):
    job = running(2, spare_nodes=1)
    job.train(20).commit(20)
    job.now += 0.3
    job.exit(1, sig=11).wait(5.0).done(fx.Kill).wait(3.0).launches().train(30)
    job.silent.add("n-1")
    job.wait(40.0).launches().train(10)
    ledger = job.record.ledger
    ledger.charge(job.now)
    assert ledger.wall_s() == pytest.approx(job.now - ledger.started_at)
    assert ledger.by_cause["crash"]["recovery"] == pytest.approx(9.0, abs=0.5)
    assert ledger.by_cause["node_lost"]["lostWork"] > 25.0
    assert ledger.by_node["n-1"]
    assert job.state is JobState.RUNNING


def test_checkpoint_stall_is_not_productive(running):
    job = running(2)
    job.train(10, stall_seconds=0.0).train(10, stall_seconds=3.0).train(5, stall_seconds=4.0)
    assert job.record.ledger.seconds["checkpointStall"] == pytest.approx(4.0)


def test_lost_work_counts_from_the_step_not_from_the_late_commit(running):
    job = running(1)
    job.train(30).commit(11).exit(0, sig=9).done(fx.Kill)
    assert job.record.ledger.seconds["lostWork"] == pytest.approx(20.0, abs=1.0)


def test_clock_of_a_node_that_is_far_off_does_not_eat_productive_time(running):
    job = running(2)
    job.train(50).exit(1, sig=9).recovers().train(60)
    before = job.record.ledger.productive_s()
    job.tell(RankExited("n-1", "n-1/1", job.record.attempt, 1, None, 9, job.now - 5000.0))
    assert job.record.ledger.productive_s() >= before - 61.0
    assert job.record.ledger.wall_s() == pytest.approx(job.now - job.record.ledger.started_at)
