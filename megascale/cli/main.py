"""Entry point: mounts the commands and turns errors into exit codes."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from megascale.cli import (
    analyze,
    checkpoint,
    completion,
    data,
    diagnose,
    doctor,
    events,
    job,
    list_runs,
    logs,
    model,
    network,
    run,
    simulate,
    status,
    stop,
)
from megascale.cli.help_texts import tidy_help
from megascale.cli.output import echo
from megascale.errors import MegascaleError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train large language models and keep them training.",
    epilog="Start here: megascale run examples/quickstart.yaml",
)
app.command("run", epilog=run.EPILOG)(run.run)
app.command("status", epilog=status.STATUS_EPILOG)(status.status)
app.command("list", epilog=list_runs.EPILOG)(list_runs.list_runs)
app.command("logs", epilog=logs.EPILOG)(logs.logs)
app.command("stop", epilog=stop.EPILOG)(stop.stop)
app.command("evict", epilog=status.EVICT_EPILOG)(status.evict)
app.command("diagnose", epilog=diagnose.EPILOG)(diagnose.diagnose)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("simulate", epilog=simulate.EPILOG)(simulate.simulate)
app.command("completion", epilog=completion.EPILOG)(completion.completion)
app.add_typer(job.app, name="job")
app.add_typer(model.app, name="model")
app.add_typer(data.app, name="data")
app.add_typer(network.app, name="network")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(analyze.app, name="analyze")
app.add_typer(events.app, name="events")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        echo(f"megascale {metadata.version('megascale')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        echo(context.get_help())


def _mount_others() -> None:
    """Commands of packages beside this one, such as the operator's: they may know Kubernetes."""
    for entry in sorted(metadata.entry_points(group="megascale.commands"), key=lambda entry: entry.name):
        app.add_typer(entry.load(), name=entry.name)


def main() -> None:
    """Run the command line; errors go to stderr, the exit code says of what kind (megascale/errors.py)."""
    try:
        _mount_others()
        program = typer.main.get_command(app)
        tidy_help(program)
        program()
    except MegascaleError as error:
        echo(f"megascale: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
