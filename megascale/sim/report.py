"""Simulation results for people: tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megascale.core.state.goodput import GoodputPhase
from megascale.sim.compare import FIGURES, Estimate, Variant, main_variant
from megascale.sim.result import ClassResult
from megascale.sim.scenario import Duration, Scenario
from megascale.sim.validity import Compared, compare_figures

_TITLES = {
    "effectiveTrainingTime": "effective training time",
    "automaticShare": "without a person",
    "wrongEvictions": "wrong evictions",
    "faults": "faults",
    "restarts": "restarts",
    "pages": "pages",
}
_SHARES = ("effectiveTrainingTime", "automaticShare")


def overview(scenario: Scenario, variants: Sequence[Variant]) -> RenderableType:
    """Everything about the main variant, and all variants side by side if there are several."""
    first = main_variant(variants)
    parts: list[RenderableType] = [_heading(scenario, first)]
    if len(variants) > 1 or len(first.results) > 1:
        parts.append(_comparison(variants))
    compared = compare_figures(scenario, variants)
    if compared:
        parts.append(_published(scenario, compared))
    parts += [_phases(first), _classes(first), _sources(scenario)]
    if scenario.assumptions:
        parts.append(Text("Assumes: " + "; ".join(scenario.assumptions) + "."))
    return Group(*parts)


def _heading(scenario: Scenario, variant: Variant) -> RenderableType:
    text = Text()
    text.append(f"{scenario.title}\n", style="bold")
    text.append(
        f"{scenario.nodes} nodes, {scenario.days:g} days, {scenario.failures.per_node_day:g} failures per "
        f"node and day ({scenario.failures.source})\n"
    )
    for name, figure in FIGURES.items():
        text.append(f"  {_TITLES[name]:<26} {_show(name, variant.estimate(figure))}\n")
    if scenario.goal:
        text.append(f"goal: {scenario.goal}\n", style="dim")
    return text


def _show(name: str, estimate: Estimate) -> str:
    share = name in _SHARES
    mean = f"{estimate.mean:.2%}" if share else f"{estimate.mean:.4g}"
    if estimate.plus_minus is None:
        return mean
    return f"{mean} ± {estimate.plus_minus:.2%}" if share else f"{mean} ± {estimate.plus_minus:.2g}"


def _comparison(variants: Sequence[Variant]) -> Table:
    table = Table(title="variants (mean, 95% interval)", title_justify="left")
    table.add_column("policy")
    for name in FIGURES:
        table.add_column(_TITLES[name], justify="right")
    for variant in variants:
        table.add_row(
            variant.label, *(_show(name, variant.estimate(figure)) for name, figure in FIGURES.items())
        )
    return table


def _published(scenario: Scenario, compared: Sequence[Compared]) -> Table:
    calibrated = f"; calibrated: {scenario.calibrated}" if scenario.calibrated else ""
    table = Table(title=f"published figures{calibrated}", title_justify="left")
    for column in ("figure", "published", "simulated", "residual", "source"):
        table.add_column(column)
    for each in compared:
        sign = {"atLeast": ">= ", "atMost": "<= ", "about": "about "}.get(each.figure.relation, "")
        table.add_row(
            each.figure.name,
            f"{sign}{each.figure.value:g}",
            f"{each.simulated:.4g}",
            f"{each.residual:+.1%}",
            each.figure.source,
        )
    return table


def _phases(variant: Variant) -> Table:
    table = Table(title="where the time went", title_justify="left")
    for column in ("phase", "share", "hours", ""):
        table.add_column(column, justify="right" if column in ("share", "hours") else "left")
    wall_s = sum(result.wall_s for result in variant.results)
    for phase in GoodputPhase:
        seconds = sum(result.goodput.get(str(phase), 0.0) for result in variant.results)
        share = seconds / wall_s
        hours = seconds / 3600 / len(variant.results)
        table.add_row(str(phase), f"{share:.3%}", f"{hours:.2f}", "█" * round(share * 40))
    return table


def _classes(variant: Variant) -> Table:
    table = Table(
        title="faults by class (first seed), seconds as median / 99th percentile", title_justify="left"
    )
    for column in ("class", "count", "automatic", "detection", "diagnosis", "recovery"):
        table.add_column(column, justify="left" if column == "class" else "right")
    result = variant.results[0]
    for name, each in sorted(result.per_class.items(), key=lambda item: -item[1].count):
        table.add_row(name, str(each.count), str(each.automatic), *_spreads(each))
    return table


def _spreads(each: ClassResult) -> Iterable[str]:
    for spread in (each.detection, each.diagnosis, each.recovery):
        yield f"{spread[0]:.1f} / {spread[1]:.1f}" if spread else "-"


def _sources(scenario: Scenario) -> Table:
    table = Table(title="durations", title_justify="left")
    for column in ("stage", "seconds", "basis", "source"):
        table.add_column(column)
    for name, stage in scenario.durations.items():
        table.add_row(name, _duration(stage), stage.basis, stage.source)
    return table


def _duration(of: Duration) -> str:
    if of.median is not None:
        return f"median {of.median:g}, p99 {of.p99:g}"
    if of.mean is not None:
        return f"mean {of.mean:g}"
    if of.high is not None:
        return f"{of.low or 0:g} to {of.high:g}"
    return f"{of.seconds:g}"
