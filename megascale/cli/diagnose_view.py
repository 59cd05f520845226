"""How `megascale diagnose` shows progress and verdicts on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from megascale.cli.safe_console import safe_console
from megascale.diagnose.checks import Check, NodeReport
from megascale.diagnose.fleet import FleetReport

_MAX_GOOD_PAIRS: Final = 12
_STYLES: Final = {
    "ok": "green",
    "healthy": "green",
    "unknown": "yellow",
    "undecided": "yellow",
    "unreachable": "yellow",
}
_MEANING: Final = {
    "healthy": "every node passed",
    "unknown": "nothing is wrong, but not everything could be judged",
    "convicted": "{convicted}",
    "link": "the nodes are good, the link between them is not: {links}",
    "undecided": "a pair is bad and nothing tells which of its nodes it is: {undecided}",
    "unreachable": "could not be tested: {unreachable}",
}

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Progress on stderr: a bar on a terminal, else a line when the stage changes."""
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def line(what: str, _done: int, _total: int) -> None:
            if what not in stages:
                stages.add(what)
                sys.stderr.write(f"{what}\n")

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=safe_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


def show_node(report: NodeReport) -> None:
    """The checks of one node, and the verdict."""
    _print(_node_table(report), f"{report.node}: ", report.verdict, report.reason)


def show_fleet(report: FleetReport) -> None:
    """The nodes, the pairs, and the verdict."""
    meaning = _MEANING[report.verdict].format(
        convicted="; ".join(f"{found.node}: {found.reason}" for found in report.convicted),
        links=", ".join(" - ".join(pair) for pair in report.pairs.links),
        undecided=", ".join(" - ".join(pair) for pair in report.pairs.undecided),
        unreachable="; ".join(report.unreachable.values()),
    )
    if not report.complete:
        meaning += "; the time was up before all was tested"
    count, rounds = len(report.results), report.rounds
    pairs = f"{count} pair{'s' * (count != 1)} in {rounds} round{'s' * (rounds != 1)}, {report.seconds:.0f} s"
    _print(Group(_fleet_table(report), *_pair_table(report)), f"{pairs}: ", report.verdict, meaning)


def _print(body: RenderableType, before: str, verdict: str, meaning: str) -> None:
    console = safe_console()
    console.print(body)
    console.print(Text.assemble(before, (verdict, _STYLES.get(verdict, "bold red")), ": ", meaning))


def _node_table(report: NodeReport) -> RenderableType:
    table = Table("check", "status", "measured", "expected at least", "", box=None, title=report.hardware)
    table.title_justify = "left"
    for check in report.checks:
        floor = f"{check.floor.value:,.4g} ({check.floor.basis})" if check.floor else ""
        table.add_row(check.name, _styled(check.status), _figure(check), floor, Text(check.detail))
    return table


def _fleet_table(report: FleetReport) -> RenderableType:
    units = {check.name: check.unit for found in report.reports for check in found.checks}
    table = Table("node", "verdict", *(f"{name}\n{unit}" for name, unit in units.items()), box=None)
    for found in report.reports:
        checks = {check.name: check for check in found.checks}
        cells = [_cell(checks.get(name)) for name in units]
        table.add_row(found.node, _styled(found.verdict), *cells)
    for address in report.unreachable:
        table.add_row(address, _styled("unreachable"))
    return table


def _cell(check: Check | None) -> RenderableType:
    if check is None:
        return Text("-", style="dim")
    judged_by_value = check.value is not None and check.status in ("ok", "slow", "unknown")
    text = f"{check.value:,.4g}" if judged_by_value else check.status
    return Text(text, style=_STYLES.get(check.status, "bold red"))


def _pair_table(report: FleetReport) -> list[RenderableType]:
    """Bad pairs, and the good ones of a small test."""
    shown = [r for r in report.results if r.key in report.bad_pairs or len(report.results) <= _MAX_GOOD_PAIRS]
    if not shown:
        return []
    table = Table("pair", "round", "all-reduce", "", box=None)
    for result in shown:
        bad = result.key in report.bad_pairs
        seconds = f"{result.seconds * 1e3:,.1f} ms" if result.seconds is not None else "no result"
        status = _styled(result.fault or ("slow" if bad else "ok"))
        table.add_row(f"{result.a} - {result.b}", str(result.round), seconds, status, Text(result.detail))
    return [Text(), table]


def _styled(status: str) -> RenderableType:
    return Text(status, style=_STYLES.get(status, "bold red"))


def _figure(check: Check) -> str:
    return f"{check.value:,.4g} {check.unit}" if check.value is not None else ""
