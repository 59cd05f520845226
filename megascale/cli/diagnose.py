"""`megascale diagnose`: test this node, or several nodes together, and convict what is at fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from megascale.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from megascale.diagnose.checks import Check, NodeReport
    from megascale.diagnose.coordinator import Limits
    from megascale.diagnose.fleet import FleetReport

EPILOG: Final = (
    "Examples: megascale diagnose --light | megascale diagnose --light --record-baseline node.json | "
    "megascale diagnose --light --nodes 10.0.0.1:7070,10.0.0.2:7070 --token-file token | "
    "megascale diagnose --light --simulate-nodes 4 --inject 2=slow | "
    "on each node, to be tested: python -m megascale.diagnose --serve 10.0.0.1:7070 --token-file token"
)
_TOTAL_S: Final = 60.0
_SIMULATED_NODE_S: Final = 15.0
_MAX_SIMULATED: Final = 32
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


def diagnose(
    light: Annotated[
        bool, typer.Option("--light", help="Run the light checks, at most 60 s; the only ones so far.")
    ] = False,
    nodes: Annotated[
        str | None,
        typer.Option("--nodes", metavar="HOST:PORT,...", help="Test these nodes together, neighbours first."),
    ] = None,
    simulate: Annotated[
        int, typer.Option("--simulate-nodes", min=0, help="Test so many nodes that are processes here.")
    ] = 0,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            "--inject", metavar="[NODE=]FAULT", help="wrong-bits, slow or hang; to see what is said."
        ),
    ] = None,
    ranks: Annotated[int, typer.Option("--ranks", min=0, help="GPUs expected here; 0 = what is there.")] = 0,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Figures recorded on this node before.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record-baseline", help="Record this node's figures as its baseline.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Token that the nodes were started with.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds for the whole test of several nodes.")
    ] = _TOTAL_S,
    pair_timeout_s: Annotated[
        float, typer.Option("--pair-timeout", min=1, help="Seconds for one wait within a pair.")
    ] = 10.0,
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, help="Nodes or pairs under test together; 0 = all.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Test nodes: products bit for bit, memory, transfers, loopback, all-to-all, all-reduce in pairs.

    Without --nodes it is this node alone. Nodes that wait with `python -m megascale.diagnose --serve` are
    tested each by itself, then in pairs; bad pairs are paired again with good nodes until one node, or the
    link, is convicted.

    Exit code 0: nothing is wrong; 1: a node or link is; 2: bad usage; 3: a node cannot be reached.
    """
    if not light:
        raise InputError("say which checks: megascale diagnose --light (see --help)")
    if nodes and simulate:
        raise InputError("--nodes and --simulate-nodes exclude each other")
    together = bool(nodes or simulate)
    if together and (baseline or record or ranks):
        raise InputError("--baseline, --record-baseline and --ranks are for one node; nodes have peers")
    if not together:
        _check_here(inject or [], ranks, baseline, record, as_json=as_json)
        return
    if nodes and inject:
        raise InputError(
            "--inject is for --simulate-nodes and this node; start the others with their own --inject"
        )
    from megascale.diagnose.coordinator import Limits

    if simulate:  # they share this machine
        limits = Limits(total_s=timeout_s + _SIMULATED_NODE_S * simulate, pair_s=pair_timeout_s, at_once=1)
    else:
        limits = Limits(total_s=timeout_s, pair_s=pair_timeout_s, at_once=at_once)
    report = asyncio.run(_together(nodes, simulate, _faults(inject or [], simulate), token_file, limits))
    _show_fleet(report, as_json=as_json)
    from megascale.diagnose.fleet import EXIT_CODES

    raise typer.Exit(EXIT_CODES[report.verdict])


def _check_here(
    inject: list[str], ranks: int, baseline: Path | None, record: Path | None, *, as_json: bool
) -> None:
    from megascale.diagnose.node import Options, check_node

    if len(inject) > 1:
        raise InputError("--inject: one fault for one node")
    options = Options(ranks=ranks, fault=_known_fault(inject[0]) if inject else "")
    with _progress() as show:
        report = asyncio.run(
            check_node(
                platform.node(),
                options,
                baseline=baseline,
                record=record,
                progress=lambda text: show(text, 0, 0),
            )
        )
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
    else:
        _print(_node_table(report), f"{report.node}: ", report.verdict, report.reason)
    raise typer.Exit(1 if report.verdict == "convicted" else 0)


async def _together(
    nodes: str | None,
    simulate: int,
    faults: dict[int, str],
    token_file: Path | None,
    limits: Limits,
) -> FleetReport:
    from megascale.diagnose.coordinator import Coordinator
    from megascale.diagnose.simulate import simulated_nodes
    from megascale.diagnose.wire import parse_address, read_token

    with _progress() as show:
        if nodes:
            addresses = [parse_address(text, "--nodes") for text in nodes.split(",")]
            token = read_token(token_file)
            return await Coordinator(addresses, token=token, limits=limits, progress=show).run()
        if not 2 <= simulate <= _MAX_SIMULATED:
            raise InputError(f"--simulate-nodes {simulate}: expected 2 to {_MAX_SIMULATED}")
        show(f"starting {simulate} nodes", 0, 0)
        async with simulated_nodes(simulate, faults) as found:
            return await Coordinator(found, token=b"", limits=limits, progress=show).run()


def _faults(inject: list[str], simulate: int) -> dict[int, str]:
    found = {}
    for text in inject:
        number, _, fault = text.partition("=")
        if not number.isdecimal() or int(number) >= simulate:
            raise InputError(f"--inject {text!r}: expected NODE=FAULT with a node from 0 to {simulate - 1}")
        found[int(number)] = _known_fault(fault)
    return found


def _known_fault(fault: str) -> str:
    from megascale.diagnose.worker import FAULTS

    if fault not in FAULTS:
        raise InputError(f"--inject {fault!r}: expected one of {', '.join(FAULTS)}")
    return fault


@contextlib.contextmanager
def _progress() -> Iterator[Report]:
    """Progress on stderr: a bar on a terminal, else a line when the stage changes."""
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def line(what: str, _done: int, _total: int) -> None:
            if what not in stages:
                stages.add(what)
                sys.stderr.write(f"{what}\n")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Elapsed(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )


def _show_fleet(report: FleetReport, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
        return
    from rich.console import Group

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
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(body)
    console.print(Text.assemble(before, (verdict, _STYLES.get(verdict, "bold red")), ": ", meaning))


def _node_table(report: NodeReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "measured", "expected at least", "", box=None, title=report.hardware)
    table.title_justify = "left"
    for check in report.checks:
        floor = f"{check.floor.value:,.4g} ({check.floor.basis})" if check.floor else ""
        table.add_row(check.name, _styled(check.status), _figure(check), floor, Text(check.detail))
    return table


def _fleet_table(report: FleetReport) -> RenderableType:
    from rich.table import Table

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
    from rich.text import Text

    if check is None:
        return Text("-", style="dim")
    judged_by_value = check.value is not None and check.status in ("ok", "slow", "unknown")
    text = f"{check.value:,.4g}" if judged_by_value else check.status
    return Text(text, style=_STYLES.get(check.status, "bold red"))


def _pair_table(report: FleetReport) -> list[RenderableType]:
    """Bad pairs, and the good ones of a small test."""
    from rich.table import Table
    from rich.text import Text

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
    from rich.text import Text

    return Text(status, style=_STYLES.get(status, "bold red"))


def _figure(check: Check) -> str:
    return f"{check.value:,.4g} {check.unit}" if check.value is not None else ""
