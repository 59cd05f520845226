"""`megascale network`: what links and switches mean for a job, before it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megascale.cli.output import echo
from megascale.errors import InputError

if TYPE_CHECKING:
    from megascale.network.ecmp import Collisions

app = typer.Typer(no_args_is_help=True, help="What links and switches mean for a job.")
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(epilog="Example: megascale network explain examples/quickstart.yaml")
def explain(
    manifest: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="A TrainingJob manifest.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what spec.network sets for the ranks, and what that means for a link that flaps."""
    from megascale.job import load_job
    from megascale.network.profile import environment
    from megascale.network.profile import explain as lines_of

    job = load_job(manifest)
    network = job.spec.network
    variables = environment(network, Path("runs") / job.metadata.name)
    if as_json:
        document = {"transportSeconds": network.transport_seconds, "environment": variables}
        echo(json.dumps(document, indent=2))
        return
    for line in lines_of(network):
        echo(line)
    for name, value in variables.items():
        echo(f"  {name}={value}")


@app.command(
    epilog="Examples: megascale network collisions --flows 32 --uplinks 32 --speedup 2 | "
    "megascale network collisions --placement nodes.txt --layout tp=8,dp=64 --uplinks 32"
)
def collisions(
    uplinks: Annotated[int, typer.Option("--uplinks", min=1, help="Uplinks of a switch.")],
    flows: Annotated[
        int | None, typer.Option("--flows", min=0, help="Flows that leave a switch at once.")
    ] = None,
    placement: Annotated[
        Path | None,
        typer.Option("--placement", help="File with a node and its switch per line, in the order of ranks."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="Layout of the job under --placement, as in `model show`.")
    ] = "tp=1,pp=1,dp=1",
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1, help="GPUs and their cards.")] = 8,
    speedup: Annotated[float, typer.Option("--speedup", help="Speed of an uplink over a downlink's.")] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Estimate how many flows are slowed down because a switch hashes them to the same uplink.

    With --placement, flows are those of the data-parallel rings; the same nodes in the order of their
    switches are estimated too.
    """
    from megascale.network.ecmp import collisions as estimate

    if speedup <= 0:
        raise InputError(f"--speedup {speedup:g}: expected a number above 0")
    if (flows is None) == (placement is None):
        raise InputError("expected one of --flows and --placement")
    if placement is not None:
        _print_placement(_read_switches(placement), layout, gpus_per_node, uplinks, speedup, as_json=as_json)
        return
    found = estimate(flows or 0, uplinks, speedup)
    if as_json:
        echo(json.dumps(dataclasses.asdict(found)))
        return
    echo(f"{flows} flows over {uplinks} uplinks of {speedup:g} x a downlink's speed: {_shares(found)}")


def _shares(found: Collisions) -> str:
    slowed, speed = found.slowed_share, found.mean_speed
    return f"{slowed:.0%} are slowed by a collision, mean speed {speed:.0%} of line rate"


def _read_switches(path: Path) -> list[str]:
    """The switch of each node."""
    switches = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--placement {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split()
        if len(fields) not in (0, 2):
            raise InputError(f'{path}:{number}: got "{line}", expected a node and its switch')
        switches += fields[1:]
    return switches


def _print_placement(
    switches: list[str], layout: str, gpus_per_node: int, uplinks: int, speedup: float, *, as_json: bool
) -> None:
    from megascale.cli.model import parse_layout
    from megascale.network.ecmp import collisions as estimate
    from megascale.network.ecmp import data_ring_flows

    cut = parse_layout(layout)
    try:
        given = data_ring_flows(switches, cut, gpus_per_node)
    except ValueError as error:
        raise InputError(f"--placement and --layout: {error}") from None
    sorted_flows = data_ring_flows(sorted(switches), cut, gpus_per_node)
    found = {switch: estimate(count, uplinks, speedup) for switch, count in given.items()}
    slowed = _slowed(given, uplinks, speedup)
    best = _slowed(sorted_flows, uplinks, speedup)
    if as_json:
        parts = {name: dataclasses.asdict(part) for name, part in found.items()}
        document = {"switches": parts, "slowedFlows": slowed, "slowedFlowsInOrderOfSwitches": best}
        echo(json.dumps(document, indent=2))
        return
    for name, part in found.items():
        echo(f"{name}: {part.flows} flows over {uplinks} uplinks: {_shares(part)}")
    echo(
        f"{sum(given.values())} flows leave switches, {slowed:.1f} of them slowed; with nodes in the order "
        f"of their switches {sum(sorted_flows.values())} and {best:.1f}"
    )


def _slowed(flows: dict[str, int], uplinks: int, speedup: float) -> float:
    """Expected number of flows that a collision slows."""
    from megascale.network.ecmp import collisions as estimate

    return sum(count * estimate(count, uplinks, speedup).slowed_share for count in flows.values())
