"""`megascale diagnose`: test this node, or several nodes together, and convict what is at fault."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from megascale.cli.output import echo
from megascale.errors import InputError

if TYPE_CHECKING:
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
    from megascale.cli.diagnose_view import show_fleet
    from megascale.diagnose.coordinator import Limits
    from megascale.diagnose.fleet import EXIT_CODES

    if simulate:  # they share this machine
        limits = Limits(total_s=timeout_s + _SIMULATED_NODE_S * simulate, pair_s=pair_timeout_s, at_once=1)
    else:
        limits = Limits(total_s=timeout_s, pair_s=pair_timeout_s, at_once=at_once)
    report = asyncio.run(_together(nodes, simulate, _faults(inject or [], simulate), token_file, limits))
    if as_json:
        echo(json.dumps(report.document(), indent=2))
    else:
        show_fleet(report)
    raise typer.Exit(EXIT_CODES[report.verdict])


def _check_here(
    inject: list[str], ranks: int, baseline: Path | None, record: Path | None, *, as_json: bool
) -> None:
    from megascale.cli.diagnose_view import progress, show_node
    from megascale.diagnose.node import Options, check_node

    if len(inject) > 1:
        raise InputError("--inject: one fault for one node")
    options = Options(ranks=ranks, fault=_known_fault(inject[0]) if inject else "")
    with progress() as show:
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
        echo(json.dumps(report.document(), indent=2))
    else:
        show_node(report)
    raise typer.Exit(1 if report.verdict == "convicted" else 0)


async def _together(
    nodes: str | None,
    simulate: int,
    faults: dict[int, str],
    token_file: Path | None,
    limits: Limits,
) -> FleetReport:
    from megascale.cli.diagnose_view import progress
    from megascale.diagnose.coordinator import Coordinator
    from megascale.diagnose.simulate import simulated_nodes
    from megascale.diagnose.wire import parse_address, read_token

    with progress() as show:
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
