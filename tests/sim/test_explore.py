"""Deterministic simulation testing: every invariant after every event, for many seeds."""

from __future__ import annotations

import random

import pytest

from megascale.core.act import lifecycle, recovery
from megascale.core.contract.vocabulary import Timer
from megascale.core.handlers import membership
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan
from megascale.sim import explore
from megascale.sim.faults import KINDS, Fault
from megascale.sim.trial import Outcome, faults_of, run_trial, transcript

SEEDS = 300
HARMLESS = (
    "driverKilled",
    "driverCut",
    "driverPaused",
    "clockSkew",
    "noise",
    "save",
    "lostCommit",
    "storageOutage",
    "staleCommit",
)


@pytest.mark.parametrize("block", range(6))
def test_no_invariant_breaks(block: int) -> None:
    size = SEEDS // 6
    for seed in range(block * size, (block + 1) * size):
        outcome = run_trial(seed)
        assert not outcome.violation, f"{outcome.violation}\n{explore.reproduction(seed, range(99))}"
        assert outcome.state in ("completed", "failed", "stopped")


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {fault.kind for seed in range(SEEDS) for fault in faults_of(seed)}
    assert drawn == set(KINDS)


@pytest.mark.parametrize("seed", range(60))
def test_nothing_restarts_for_harmless_faults(seed: int) -> None:
    """Driver crashes, wrong clocks and a silent storage do not stop training (invariant 4)."""
    rng = random.Random(f"harmless/{seed}")
    kinds = [rng.choice(HARMLESS) for _ in range(rng.randrange(1, 4))]
    faults = sorted(
        (Fault(rng.uniform(0, 60), kind, rng.randrange(1000), rng.random()) for kind in kinds),
        key=lambda fault: fault.at,
    )
    outcome = run_trial(seed, faults)
    assert (outcome.violation, outcome.state, outcome.attempts) == (None, "completed", 1)


def test_a_seed_always_plays_the_same() -> None:
    first, second = run_trial(7, keep_log=True), run_trial(7, keep_log=True)
    assert transcript(first) == transcript(second)


def _never_lose(ctx: object, name: str, fault: object) -> None:
    """A core that ignores lost nodes."""


def _launch_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that puts ranks on excluded nodes again."""

    def usable(ctx: StepContext) -> list[str]:
        return sorted(name for name, node in ctx.live.nodes.items() if node.status == "ready")

    monkeypatch.setattr("megascale.core.state.context.StepContext.usable", usable)


def _forget_the_kill_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lifecycle.stop

    def stop(ctx: StepContext, plan: Plan) -> None:
        original(ctx, plan)
        ctx.clear_deadline(Timer.KILL)

    monkeypatch.setattr(recovery, "stop", stop)


def _ignore_lost_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "lose", _never_lose)


def _restore_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that takes the newest commit, whatever branch it is on."""
    monkeypatch.setattr("megascale.core.contract.lineage.is_on_lineage", lambda *_: True)
    monkeypatch.setattr("megascale.core.decide.restore.is_on_lineage", lambda *_: True)
    monkeypatch.setattr("megascale.core.act.lineage.is_on_lineage", lambda *_: True)


def _exclude_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megascale.core.act.exclusion.exclusion_bound", lambda _ctx: None)


@pytest.mark.parametrize(
    ("breakage", "seeds"),
    [
        (_launch_everywhere, 400),
        (_forget_the_kill_timer, 60),
        (_ignore_lost_nodes, 200),
        (_restore_anything, 1500),
        (_exclude_without_bound, 600),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else str(value),
)
def test_a_broken_core_is_found_out(breakage: object, seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness is worth its time only if it notices: each of these is a bug one could make."""
    assert callable(breakage)
    breakage(monkeypatch)
    assert any(run_trial(seed).violation for seed in range(seeds))


def test_a_failure_is_cut_down_to_what_matters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _forget_the_kill_timer(monkeypatch)
    seed = next(seed for seed in range(200) if run_trial(seed).violation and len(faults_of(seed)) > 2)
    kept = explore.minimise(seed, range(len(faults_of(seed))))
    assert 1 <= len(kept) < len(faults_of(seed))
    command = explore.reproduction(seed, kept)
    assert explore.main(command.split()[3:]) == 1
    shown = capsys.readouterr().out
    assert "!! " in shown
    assert "violated: " in shown


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main(["--seeds", "20", "--jobs", "1"]) == 0
    assert "20 seeds" in capsys.readouterr().out


def test_outcome_of_an_undisturbed_job() -> None:
    outcome: Outcome = run_trial(5, [])
    assert (outcome.state, outcome.attempts) == ("completed", 1)
    assert JobState.FINISHED == "finished"
