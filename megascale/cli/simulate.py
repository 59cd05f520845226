"""`megascale simulate`: the real core against a virtual cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megascale.cli.output import echo
from megascale.errors import InputError

if TYPE_CHECKING:
    from megascale.sim.compare import Variant
    from megascale.sim.scenario import Scenario

EPILOG = (
    "Examples: megascale simulate --list ; megascale simulate reference-12288 --seeds 5 "
    "--compare no-spares,requeue,ours ; megascale simulate reference-12288 --stretch 1,2,4 --json"
)
MAX_SEEDS = 1000


def simulate(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO", help="Name of a built-in scenario, or a YAML file.", show_default=False
        ),
    ] = "",
    list_names: Annotated[bool, typer.Option("--list", help="Name the built-in scenarios.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first campaign.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", help="Campaigns with consecutive seeds.")] = 1,
    policy: Annotated[str, typer.Option("--policy", help="Policy to simulate.")] = "ours",
    compare: Annotated[
        str, typer.Option("--compare", help="Several policies, separated by commas.", show_default=False)
    ] = "",
    stretch: Annotated[
        str, typer.Option("--stretch", help="Multiply every duration; several factors by commas.")
    ] = "1",
    fidelity: Annotated[
        str, typer.Option("--fidelity", help="event: quiet times skipped; detailed: every heartbeat.")
    ] = "event",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Write timeline.html, result.json and events.jsonl."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Simulate weeks of a large job and say what automation makes of its faults."""
    from megascale.sim.scenario import load

    if list_names:
        _list(as_json=as_json)
        return
    if not scenario:
        raise InputError("name a scenario; megascale simulate --list shows the built-in ones")
    chosen = load(scenario)
    if not 1 <= seeds <= MAX_SEEDS:
        raise InputError(f"--seeds: got {seeds}, expected 1 to {MAX_SEEDS}")
    if fidelity == "detailed":
        _detailed(chosen, seed, as_json=as_json)
        return
    if fidelity != "event":
        raise InputError(f"--fidelity: got {fidelity!r}, expected event or detailed")
    policies = [name.strip() for name in (compare or policy).split(",") if name.strip()]
    variants = _run(chosen, policies, range(seed, seed + seeds), _factors(stretch))
    if output is not None:
        from megascale.sim.compare import main_variant

        _write(output, chosen, main_variant(variants), seed)
    _show(chosen, variants, seed, as_json=as_json)


def _factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 < factor <= 1000 for factor in factors):
        raise InputError(f"--stretch: got {text!r}, expected factors above 0 such as 1,2,4")
    return factors


def _list(*, as_json: bool) -> None:
    from megascale.sim.scenario import load, names

    found = [(name, load(name).title) for name in names()]
    if as_json:
        echo(json.dumps([{"name": name, "title": title} for name, title in found]))
        return
    for name, title in found:
        echo(f"{name:18} {title}")


def _run(scenario: Scenario, policies: list[str], seeds: range, stretches: list[float]) -> list[Variant]:
    from rich.progress import Progress

    from megascale.cli.safe_console import safe_console
    from megascale.sim.compare import run_variants
    from megascale.sim.scenario import under_policy

    for policy in policies:
        under_policy(scenario, policy)
    total = len(policies) * len(seeds) * len(stretches)
    with Progress(console=safe_console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(f"simulating {scenario.name}", total=total)
        return run_variants(
            scenario,
            policies=policies,
            seeds=seeds,
            stretches=stretches,
            done=lambda: progress.advance(task),
        )


def _show(scenario: Scenario, variants: list[Variant], seed: int, *, as_json: bool) -> None:
    from megascale.cli.safe_console import safe_console
    from megascale.sim.report import overview

    if as_json:
        echo(json.dumps(_document(scenario, variants, seed)))
    else:
        safe_console().print(overview(scenario, variants))


def _document(scenario: Scenario, variants: list[Variant], seed: int) -> dict[str, Any]:
    """The main variant's first campaign at the top level, then every variant with its intervals."""
    from megascale.sim.compare import FIGURES, main_variant
    from megascale.sim.validity import compare_figures

    shown = main_variant(variants)
    document: dict[str, Any] = {
        "scenario": scenario.name,
        "policy": shown.policy,
        "stretch": shown.stretch,
        "seed": seed,
    }
    document |= shown.results[0].to_json()
    document["published"] = [
        {
            "figure": each.figure.name,
            "published": each.figure.value,
            "relation": each.figure.relation,
            "simulated": each.simulated,
            "residual": each.residual,
        }
        for each in compare_figures(scenario, variants)
    ]
    if len(variants) > 1 or len(variants[0].results) > 1:
        document["variants"] = [
            {
                "policy": variant.policy,
                "stretch": variant.stretch,
                "seeds": len(variant.results),
                **{name: variant.estimate(figure).to_json() for name, figure in FIGURES.items()},
            }
            for variant in variants
        ]
    return document


def _write(folder: Path, scenario: Scenario, variant: Variant, seed: int) -> None:
    """Simulate the first campaign once more with its event log, and draw it."""
    from megascale.sim.campaign import Campaign
    from megascale.sim.result import result_of
    from megascale.sim.timeline import page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("w", encoding="utf-8") as log:
            campaign = Campaign(
                scenario,
                policy=variant.policy,
                seed=seed,
                stretch=variant.stretch,
                write=lambda line: print(line, file=log),
            )
            ledger = campaign.run()
        result = result_of(ledger)
        timeline = page(scenario, variant.policy, ledger, result)
        (folder / "timeline.html").write_text(timeline, encoding="utf-8")
        (folder / "result.json").write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written: {error}") from error
    echo(f"wrote timeline.html, result.json and events.jsonl to {folder}", err=True)


def _detailed(scenario: Scenario, seed: int, *, as_json: bool) -> None:
    from megascale.sim.detailed import measure

    measured = measure(scenario, seed)
    if as_json:
        echo(json.dumps(measured.to_json()))
        return
    for line in measured.to_text():
        echo(line)
