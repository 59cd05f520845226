"""`megascale network`: what links and switches mean for a job, before it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from megascale.errors import InputError

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
    from megascale.network.profile import explain as words

    job = load_job(manifest)
    network = job.spec.network
    variables = environment(network, Path("runs") / job.metadata.name)
    if as_json:
        document = {"transportSeconds": network.transport_seconds, "environment": variables}
        typer.echo(json.dumps(document, indent=2))
        return
    for line in words(network):
        typer.echo(line)
    for name, value in variables.items():
        typer.echo(f"  {name}={value}")


@app.command(
    epilog="Examples: megascale network collisions --flows 32 --uplinks 32 | "
    "megascale network collisions --flows 32 --uplinks 32 --speedup 2"
)
def collisions(
    flows: Annotated[int, typer.Option("--flows", min=0, help="Flows that leave a switch at once.")],
    uplinks: Annotated[int, typer.Option("--uplinks", min=1, help="Its uplinks.")],
    speedup: Annotated[float, typer.Option("--speedup", help="Speed of an uplink over a downlink's.")] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Estimate how many flows are slowed down because a switch hashes them to the same uplink."""
    from megascale.network.ecmp import collisions as estimate

    if speedup <= 0:
        raise InputError(f"--speedup {speedup:g}: expected a number above 0")
    found = estimate(flows, uplinks, speedup)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
        return
    shares = (
        f"{found.slowed_share:.0%} are slowed by a collision, mean speed {found.mean_speed:.0%} of line rate"
    )
    typer.echo(f"{flows} flows over {uplinks} uplinks of {speedup:g} x a downlink's speed: {shares}")
