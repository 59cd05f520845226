"""`megascale stop`: save a running local job and stop it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.cli.local_job import INTERRUPTED, JobArgument, RunsOption
from megascale.cli.output import echo
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.errors import MegascaleError, UnreachableError

if TYPE_CHECKING:
    from megascale.observe.rundir import RunDir

EPILOG: Final = 'Examples: megascale stop quickstart | megascale stop runs/quickstart --reason "new driver"'
_LOOK_S: Final = 0.2


def stop(
    job: JobArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept as the reason of the end.")] = "",
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Save a running job, stop it, and wait until its processes have ended.

    `megascale run` resumes it from the checkpoint. A job that has ended is left as it is. Ctrl-C ends the
    waiting, the job still stops. Exit code 1 when the job failed instead, 3 when nothing answers.
    """
    from megascale.cli.local_job import ended_text, find_run, standing

    run = find_run(runs, job)
    found = standing(run)
    was_ended = found.ended
    if not was_ended:
        try:
            asyncio.run(stop_run(run, reason, _say))
        except KeyboardInterrupt:
            echo(f"{found.name} is still stopping", err=True)
            raise typer.Exit(130) from None
        found = standing(run)
    if as_json:
        sys.stdout.write(json.dumps(_document(run, found.state)) + "\n")
    else:
        resume = f"; resume: megascale run {run.job_file}" if found.state == FinishState.STOPPED else ""
        echo(f"{ended_text(found)}{resume}")
    if not was_ended and found.state == FinishState.FAILED:
        raise typer.Exit(MegascaleError.exit_code)


async def stop_run(run: RunDir, reason: str, say: Callable[[str], None]) -> None:
    """Ask the driver to save and stop; return when the job has ended and its driver is gone.

    Raises:
        UnreachableError: no driver runs and none comes, or it does not take the command.
    """
    from megascale.cli.local_job import driver_lives, standing

    asked = False
    while not (found := standing(run)).ended:
        if not driver_lives(run):
            if found.state == INTERRUPTED:
                raise UnreachableError(
                    f"{found.name} is not running: it was interrupted at step {found.step}; agents that "
                    "still run save and leave after health.orphanSeconds"
                )
        elif not asked:
            await _ask(run, reason)
            asked = True
            say(f"asked {found.name} to save and stop")
        else:
            await _follow(run, say)
        await asyncio.sleep(_LOOK_S)


async def _ask(run: RunDir, reason: str) -> None:
    import getpass

    from megascale.cli.local_job import command
    from megascale.rpc import megascale_pb2 as pb

    request = pb.CommandRequest(
        command=Command.STOP, reason=reason or "stopped by megascale stop", by=getpass.getuser()
    )
    reply = await command(run, request)
    if not reply.ok:
        raise UnreachableError(f"{run.root}: the driver refused to stop: {reply.message}")


async def _follow(run: RunDir, say: Callable[[str], None]) -> None:
    """Show what the driver says until it closes; its successor, if it dies, is the caller's business."""
    from megascale.cli.local_job import driver_stub
    from megascale.cli.view import one_line
    from megascale.rpc import megascale_pb2 as pb

    state = ""
    try:
        async with driver_stub(run) as (stub, metadata):
            async for message in stub.Watch(pb.WatchRequest(), metadata=metadata):
                document = json.loads(message.document)
                if document["state"] != state:
                    state = document["state"]
                    say(one_line(document))
    except UnreachableError:
        return


def _say(text: str) -> None:
    echo(text, err=True)


def _document(run: RunDir, state: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(run.summary_file.read_text())
    except (FileNotFoundError, ValueError):
        return {"job": run.root.name, "state": state}
    return document
