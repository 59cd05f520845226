"""`megascale status` and `megascale evict`: look at a job, take a node out of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.cli.local_job import OptionalJobArgument, RunsOption
from megascale.cli.output import echo
from megascale.core.contract.vocabulary import Command
from megascale.errors import InputError
from megascale.observe.text import shown

if TYPE_CHECKING:
    from megascale.observe.rundir import RunDir

STATUS_EPILOG: Final = "Examples: megascale status quickstart | megascale status runs/quickstart --json"
EVICT_EPILOG: Final = 'Example: megascale evict node-1 --job quickstart --reason "fan noise"'


def status(
    job: OptionalJobArgument = "",
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a job's nodes, ranks, progress and incidents; of a job that ended, its summary.

    Exit code 3 when nothing of a job that has not ended runs, or its driver does not answer.
    """
    from megascale.cli.local_job import check_live, ended_text, find_run, standing, watch_once
    from megascale.cli.safe_console import safe_console
    from megascale.cli.view import render, render_summary

    run = find_run(runs, job)
    found = standing(run)
    if not found.ended:
        check_live(run)
        document, show = asyncio.run(watch_once(run)), render
    else:
        echo(ended_text(found), err=True)
        document, show = _summary(run), render_summary
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    elif document:
        safe_console().print(show(shown(document)))


def evict(
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Node to take out, as named by `megascale status`.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the incident.")],
    job: Annotated[
        str, typer.Option("--job", help="Name, or folder of the run; default: the only one.")
    ] = "",
    runs: RunsOption = Path("runs"),
) -> None:
    """Save, take the node out of the job, and go on without it; the job never uses it again.

    Exit code 2 when the job has ended or has no such node, 3 when its driver does not answer.
    """
    import getpass

    from megascale.cli.local_job import check_live, command, find_run
    from megascale.rpc import megascale_pb2 as pb

    run = find_run(runs, job)
    check_live(run)
    request = pb.CommandRequest(command=Command.EVICT, node=node, reason=reason, by=getpass.getuser())
    reply = asyncio.run(command(run, request))
    if not reply.ok:
        raise InputError(reply.message)
    echo(f"{node} is being evicted", err=True)


def _summary(run: RunDir) -> dict[str, Any]:
    """What the driver wrote when the job ended; empty if that was deleted."""
    try:
        document: dict[str, Any] = json.loads(run.summary_file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return document
