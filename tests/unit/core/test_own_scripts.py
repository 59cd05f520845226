"""Scripts that may or may not tell their steps: when they count as running, hanging and recovered."""

from __future__ import annotations

from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.core.state.record import JobState


def launched(**changes: object) -> Core:
    """A job of one node whose script was just started, at time 10."""
    core = Core(Policy(nodes=1, steps=100, reports_steps=False, **changes))  # type: ignore[arg-type]
    core.step(ev.DriverStarted(1), 0.5)
    core.step(ev.NodeJoined("node-0", "a", 0, (), {}), 1.0)
    _answer_launch(core, 10.0)
    return core


def _answer_launch(core: Core, now: float) -> None:
    (effect_id,) = [name for name, pending in core.record.pending.items() if pending.kind == "Launch"]
    core.step(ev.EffectDone(effect_id, {}), now)


def report(core: Core, now: float, step: int = 0, seconds: float = 0.0, phase: str = "forward") -> None:
    at = now if step else 0.0
    rank = ev.RankProgress(
        rank=0, step=step, phase=phase, progress_at=at, step_seconds=seconds, first_step_at=at
    )
    core.step(ev.NodeReport("node-0", "a", core.record.attempt, (rank,)), now)


def heartbeat(core: Core, start: float, end: float, **told: object) -> None:
    for second in range(int(start), int(end)):
        report(core, float(second), **told)  # type: ignore[arg-type]


def test_a_script_that_tells_nothing_is_running_at_once_and_never_hangs() -> None:
    core = launched(startup_s=60.0)
    assert core.record.state is JobState.RUNNING
    heartbeat(core, 11, 1000, phase="startup")
    assert core.record.state is JobState.RUNNING
    assert core.record.incident is None


def test_a_script_that_tells_its_steps_is_watched() -> None:
    core = launched()
    for step in range(1, 20):
        report(core, 10.0 + step, step, 1.0)
    heartbeat(core, 30, 60, step=19, seconds=1.0)
    assert core.record.state is JobState.DIAGNOSING
    assert core.record.incident is not None
    assert core.record.incident.cause == "hang"


def test_after_its_last_step_it_may_take_its_time() -> None:
    core = launched()
    for step in range(91, 101):
        report(core, float(step), step, 1.0)
    heartbeat(core, 101, 500, step=100, seconds=1.0)
    assert core.record.state is JobState.RUNNING


def test_an_untold_script_is_stopped_without_waiting_for_a_save() -> None:
    core = launched()
    report(core, 11.0, phase="startup")
    effects = core.step(ev.ManualCommand("stop", "Ctrl-C"), 20.0)
    assert [type(effect).__name__ for effect in effects] == ["Kill"]


def test_a_told_script_is_asked_to_save_first() -> None:
    core = launched()
    report(core, 11.0, 1, 1.0)
    effects = core.step(ev.ManualCommand("stop", "Ctrl-C"), 20.0)
    assert [type(effect).__name__ for effect in effects] == ["SaveNow"]


def _restarted(told: int, resumed: int) -> dict[str, float]:
    """Seconds by phase after a crash at step `told` and a restart whose first step was after `resumed`."""
    core = launched()
    for step in range(1, told + 1):
        report(core, 10.0 + step, step, 1.0)
    core.step(ev.RankExited("node-0", "a", 1, 0, signal=9, at=10.0 + told), 10.0 + told)
    (kill,) = [name for name, pending in core.record.pending.items() if pending.kind == "Kill"]
    core.step(ev.EffectDone(kill, {}), 11.0 + told)
    _answer_launch(core, 12.0 + told)
    report(core, 13.0 + told, resumed + 1, 1.0)
    return core.record.ledger.seconds


def test_a_script_with_checkpoints_of_its_own_loses_what_it_does_again() -> None:
    seconds = _restarted(told=40, resumed=35)
    # steps 36 to 40, and the second until its first step told where it was
    assert 5.0 <= seconds["lostWork"] <= 7.0
    assert 34.0 <= seconds["productive"] <= 36.0


def test_a_script_that_starts_over_loses_everything() -> None:
    seconds = _restarted(told=40, resumed=0)
    assert seconds["productive"] <= 1.0
    assert seconds["lostWork"] >= 40.0
