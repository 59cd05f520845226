"""Scripts that may or may not tell their steps: when they count as running, hanging and recovered."""

from __future__ import annotations

from megascale.core.contract import events as ev
from megascale.core.contract.policy import LogRuleSpec, Policy
from megascale.core.contract.vocabulary import Timer
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


BAD_SAMPLE = "ValueError: bad sample in shard 7"


def steady(**changes: object) -> Core:
    """As `launched`, without heartbeats: a node may be silent for as long as it likes."""
    return launched(silence_s=1e6, **changes)


def crash(core: Core, now: float, line: str = BAD_SAMPLE) -> None:
    """The only rank fails at `now`, and the next attempt is launched, after a back-off if there is one."""
    core.step(ev.RankExited("node-0", "a", core.record.attempt, 0, exit_code=1, at=now, tail=(line,)), now)
    (kill,) = [name for name, pending in core.record.pending.items() if pending.kind == "Kill"]
    core.step(ev.EffectDone(kill, {}), now + 0.1)
    due = core.next_deadline()
    if core.record.state is JobState.ASSEMBLING and due is not None:
        core.step(ev.Tick(), due)
    if core.record.state is JobState.LAUNCHING:
        _answer_launch(core, core.record.launched_at + 0.1)


def last_decision(core: Core) -> tuple[str | None, str]:
    incident = core.record.incident or core.record.incidents[-1]
    return incident.action, incident.decision


def test_a_script_that_tells_nothing_is_restarted_after_an_exception() -> None:
    core = steady()
    crash(core, 40.0)
    assert core.record.state is JobState.RUNNING
    action, decision = last_decision(core)
    assert action == "restart_in_place"
    assert "first step" not in decision


def test_a_script_that_works_for_some_seconds_each_time_may_go_on_until_its_budget_is_spent() -> None:
    core = steady(max_restarts=12)
    for attempt in range(1, 13):
        assert core.record.attempt == attempt
        assert core.record.assignment == ("node-0",)
        crash(core, core.record.launched_at + 8.0, line=f"worker {'abcdefghijklm'[attempt]} gave up")
    crash(core, core.record.launched_at + 8.0)
    assert core.record.finish_reason.endswith("all 12 restarts of recovery.maxRestarts are used")


def test_a_script_that_ends_at_its_start_is_given_up_with_the_field_that_says_so() -> None:
    core = steady(minimum_run_s=6.0)
    for _ in range(5):  # the first attempt was answered late and ran long enough
        crash(core, core.record.launched_at + 5.5)
    assert core.record.state is JobState.FINISHED
    assert "3 restarts in a row failed within 6 s of their start (recovery.minimumRunSeconds)" in (
        core.record.finish_reason
    )


def test_an_attempt_that_works_is_not_given_up_for_those_before_it_that_did_not() -> None:
    core = steady(minimum_run_s=6.0)
    for ran_s in (1.0, 1.0, 1.0, 3600.0):
        crash(core, core.record.launched_at + ran_s)
    assert core.record.state is JobState.RUNNING
    assert core.record.failures_in_row == 0


def test_a_program_that_cannot_begin_fails_the_job_at_once() -> None:
    for line in (
        "python: can't open file '/home/user/trian.py': [Errno 2] No such file or directory",
        "ModuleNotFoundError: No module named 'trainer'",
        "train.py: error: unrecognized arguments: --lr-typo",
    ):
        core = steady()
        crash(core, 12.0, line)
        assert core.record.state is JobState.FINISHED, line
        assert "first step" not in core.record.finish_reason


def test_an_import_that_fails_after_the_start_is_restarted() -> None:
    core = steady(startup_s=60.0)
    crash(core, 75.0, "ModuleNotFoundError: No module named 'exporter'")
    assert core.record.state is JobState.RUNNING


def test_restarts_in_a_row_wait_longer_and_a_new_step_ends_that() -> None:
    core = steady(backoff_limit_s=30.0)
    waits = []
    for _ in range(6):
        now = core.record.launched_at + 8.0
        core.step(ev.RankExited("node-0", "a", core.record.attempt, 0, signal=9, at=now), now)
        due = core.record.deadlines.get(Timer.BACKOFF)
        waits.append(due - now if due else 0.0)
        (kill,) = [name for name, pending in core.record.pending.items() if pending.kind == "Kill"]
        core.step(ev.EffectDone(kill, {}), now)
        if due:
            assert core.record.state is JobState.ASSEMBLING
            core.step(ev.NodeReport("node-0", "a"), now)
            assert core.record.state is JobState.ASSEMBLING
            assert "after a back-off of" in last_decision(core)[1]
            core.step(ev.Tick(), due)
        _answer_launch(core, core.record.launched_at + 0.1)
    assert waits[0] == 0.0
    assert all(0.0 < wait <= bound for wait, bound in zip(waits[1:], (1, 2, 4, 8, 16), strict=True))
    report(core, core.record.launched_at + 1.0, 1, 1.0)
    assert core.record.restarts_in_row == 0


def test_a_helper_that_cannot_begin_does_not_fail_the_job_of_a_rank_that_was_killed() -> None:
    core = steady()
    line = "ModuleNotFoundError: No module named 'setproctitle'"
    core.step(ev.LogMatch("node-0", "user-exception", "user_code", "fail_job", line, 0, 1, 12.0), 12.0)
    core.step(ev.RankExited("node-0", "a", 1, 0, signal=9, at=12.5, tail=(line,)), 12.5)
    assert last_decision(core)[0] == "restart_in_place"


def test_a_rule_of_the_job_that_asks_for_its_end_is_obeyed() -> None:
    for own in (True, False):
        rules = (LogRuleSpec("quota", pattern="out of quota", category="user_code", action="fail_job"),)
        core = launched(log_rules=rules if own else ())
        report(core, 11.0, phase="startup")
        core.step(ev.RankExited("node-0", "a", 1, 0, exit_code=3, tail=("out of quota",), at=20.0), 20.0)
        assert core.record.incident is not None
        assert (core.record.incident.action == "fail_job") == own
