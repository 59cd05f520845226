from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from replaying import mismatches
from typer.testing import CliRunner

from megascale.cli.main import app as main_app
from megascale.core.state.goodput import GoodputPhase
from megascale.errors import InputError, ManifestError
from megascale.sim.campaign import Campaign, Ledger
from megascale.sim.compare import estimate, run_variants
from megascale.sim.failures import DAY_S
from megascale.sim.report import overview
from megascale.sim.result import Result, result_of
from megascale.sim.scenario import Scenario, load, names, under_policy
from megascale.sim.timeline import page


def _scaled(name: str, *, gpus: int, days: float, **failures: float) -> Scenario:
    scenario = load(name)
    changed = scenario.failures.model_copy(update=failures)
    return scenario.model_copy(update={"gpus": gpus, "days": days, "failures": changed})


@pytest.fixture(scope="module")
def small() -> tuple[Scenario, Ledger, Result]:
    """512 GPUs for ten days with the failure rate of an early cluster."""
    scenario = _scaled("reference-12288", gpus=512, days=20, per_node_day=0.02)
    mix = [each for each in scenario.failures.classes if each.symptom != "nan"]
    scenario = scenario.model_copy(update={"failures": scenario.failures.model_copy(update={"classes": mix})})
    ledger = Campaign(scenario, seed=3).run()
    return scenario, ledger, result_of(ledger)


def test_every_second_is_accounted_for(small: tuple[Scenario, Ledger, Result]) -> None:
    _, ledger, result = small
    assert math.isclose(sum(result.goodput.values()), ledger.wall_s, abs_tol=1e-3)
    assert set(result.goodput) == {str(phase) for phase in GoodputPhase}


def test_effective_time_agrees_with_the_cores_own_account(small: tuple[Scenario, Ledger, Result]) -> None:
    """Steps that survived, counted from outside, against the productive phase of the core's ledger."""
    _, ledger, result = small
    productive = result.goodput["productive"] / ledger.wall_s
    assert result.effective_training_time == pytest.approx(productive, abs=0.005)


def test_faults_are_handled(small: tuple[Scenario, Ledger, Result]) -> None:
    _, _, result = small
    assert result.faults > 15
    assert result.restarts >= result.faults * 0.5
    assert result.automatic_share > 0.9
    crash = result.per_class["faultyGpu"]
    assert crash.detection is not None
    assert crash.recovery is not None
    assert crash.detection[0] <= 2.0 < crash.recovery[0]


def test_same_seed_same_result_other_seed_another() -> None:
    scenario = _scaled("reference-12288", gpus=128, days=5, per_node_day=0.1)
    first, again, other = (Campaign(scenario, seed=seed).run() for seed in (1, 1, 2))
    assert [s.at for s in first.injections] == [s.at for s in again.injections]
    assert first.steps == again.steps
    assert [s.at for s in other.injections] != [s.at for s in first.injections]


def test_the_written_log_replays(tmp_path: Path) -> None:
    lines: list[str] = []
    scenario = _scaled("megascale", gpus=64, days=3, per_node_day=0.2)
    Campaign(scenario, write=lines.append).run()
    assert len(lines) > 100
    assert not mismatches(lines)


def test_slower_stages_cost_time() -> None:
    scenario = _scaled("reference-12288", gpus=512, days=10, per_node_day=0.03)
    one, four = run_variants(scenario, policies=["ours"], seeds=[0, 1], stretches=[1.0, 4.0])
    lost = [1 - variant.estimate(lambda r: r.effective_training_time).mean for variant in (one, four)]
    assert 1.5 < lost[1] / lost[0] < 5.0


def test_our_policy_beats_requeueing() -> None:
    scenario = _scaled("reference-12288", gpus=1024, days=10, per_node_day=0.02)
    variants = run_variants(scenario, policies=["ours", "requeue"], seeds=[0, 1, 2])
    ours, requeue = (v.estimate(lambda r: r.effective_training_time).mean for v in variants)
    assert ours > requeue


@pytest.mark.parametrize("interval_s", [300.0, 600.0])
def test_metas_expected_ettr(interval_s: float) -> None:
    """E[ETTR] = (1 - N r (u0 + dt/2)) / (1 + w/dt) of arXiv 2410.21680, for faults that cost little."""
    rate, restart_s, write_s, nodes = 6.5e-3, 300.0, 5.0, 500
    base, thresholds = under_policy(load("meta-rsc"), "published-5min")
    del thresholds
    checkpoints = base.checkpoints.model_copy(update={"every_seconds": interval_s, "stall_seconds": write_s})
    quiet = {"false_hang_per_hour": 0.0, "false_silence_per_node_hour": 0.0, "per_node_day": rate}
    scenario = base.model_copy(
        update={
            "gpus": nodes * 8,
            "days": 60.0,
            "checkpoints": checkpoints,
            "failures": base.failures.model_copy(update=quiet),
        }
    )
    result = result_of(Campaign(scenario, seed=0).run())
    failures_per_s = nodes * rate / DAY_S
    expected = (1 - failures_per_s * (restart_s + interval_s / 2)) / (1 + write_s / interval_s)
    assert result.effective_training_time == pytest.approx(expected, rel=0.02)
    # The 2% of the claim would pass a simulator that loses nothing: what is lost must agree as well.
    assert 1 - result.effective_training_time == pytest.approx(1 - expected, rel=0.15)


def test_false_alarms_are_counted_as_wrong() -> None:
    scenario = _scaled(
        "reference-12288", gpus=128, days=5, per_node_day=0.0, false_silence_per_node_hour=5e-3
    )
    result = result_of(Campaign(scenario, seed=0).run())
    assert result.faults == 0
    assert result.per_class["falseSilence"].count > 2
    assert result.wrong_evictions <= result.exclusions


def test_cost_grows_with_events_not_with_time() -> None:
    """Ten times the days without a fault: only checkpoints are added."""
    quiet = {"per_node_day": 0.0, "false_hang_per_hour": 0.0, "false_silence_per_node_hour": 0.0}
    short = Campaign(_scaled("reference-12288", gpus=1024, days=1, **quiet)).run()
    long = Campaign(_scaled("reference-12288", gpus=1024, days=10, **quiet)).run()
    commits = 9 * DAY_S / load("reference-12288").checkpoints.every_seconds
    assert long.events - short.events == pytest.approx(commits, rel=0.1)


@pytest.mark.parametrize("name", names())
def test_built_in_scenarios_are_sound(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    for policy in ("ours", "no-spares", "requeue", *(figure.policy for figure in scenario.figures)):
        under_policy(scenario, policy)
    assert all(stage.source for stage in scenario.durations.values())


def test_unknown_scenarios_and_fields_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reference-12288"):
        load("reference-1228")
    with pytest.raises(InputError, match="no policy"):
        under_policy(load("megascale"), "theirs")
    bad = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[3] / "megascale/sim/scenarios/b200-504.yaml").read_text()
    bad.write_text(text.replace("spares:", "sparse:", 1).replace("days: 30", "days: -3"))
    with pytest.raises(ManifestError) as caught:
        load(str(bad))
    assert {"sparse", "days"} <= {issue.path for issue in caught.value.issues}


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("durations: {}\n", "durations: {forq: {seconds: 1, basis: assumed, source: x}}\n", "durations.forq"),
        ("hangMarginS", "hangMargin", "policies.requeue.thresholds.hangMargin"),
        ("policy: ours", "policy: theirs", "figures[0].policy"),
    ],
)
def test_names_that_mean_nothing_are_told(tmp_path: Path, old: str, new: str, path: str) -> None:
    bad = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[3] / "megascale/sim/scenarios/b200-504.yaml").read_text()
    bad.write_text(text.replace(old, new, 1))
    with pytest.raises(ManifestError) as caught:
        load(str(bad))
    assert [issue.path for issue in caught.value.issues] == [path]


def test_required_fields_are_told_with_their_meaning(tmp_path: Path) -> None:
    bad = tmp_path / "mine.yaml"
    bad.write_text("name: mine\n")
    with pytest.raises(ManifestError, match=r"days: is required.*how long the campaign lasts"):
        load(str(bad))


def test_estimate_has_an_interval() -> None:
    assert estimate([1.0]).plus_minus is None
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.plus_minus == pytest.approx(2.484, rel=1e-3)


def test_timeline_shows_phases_and_faults(small: tuple[Scenario, Ledger, Result]) -> None:
    scenario, ledger, result = small
    drawn = page(scenario, "ours", ledger, result)
    assert "&lt;b&gt;\\x1b" in page(scenario, "<b>\x1b", ledger, result)
    assert drawn.count("<rect") >= len(ledger.phases) - 1
    assert drawn.count("<path") == len(ledger.injections)
    assert "http" not in drawn.replace("http-equiv", "")
    assert overview(scenario, run_variants(scenario, policies=["ours"], seeds=[3]))


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(main_app, ["simulate", "--list"])
    assert "reference-12288" in listed.stdout
    arguments = ["simulate", "b200-504", "--seed", "1", "--json", "--output", str(tmp_path)]
    told = json.loads(runner.invoke(main_app, arguments).stdout)
    assert {"effectiveTrainingTime", "automaticShare", "wrongEvictions", "restarts", "pages"} <= told.keys()
    assert {"wallSeconds", "perClass", "goodput", "incidents"} <= told.keys()
    assert (tmp_path / "timeline.html").exists()
    assert (tmp_path / "events.jsonl").exists()
