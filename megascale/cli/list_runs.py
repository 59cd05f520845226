"""`megascale list`: the runs of this machine."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.cli.local_job import RunsOption
from megascale.cli.output import echo
from megascale.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from megascale.cli.local_job import Standing

EPILOG: Final = "Examples: megascale list | megascale list --runs /data/runs --json"
DAMAGED: Final = "damaged"
_ANSWER_S: Final = 2.0
_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60))


def list_runs(
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the runs in the runs folder: state, newest step, attempt, and time since they began.

    A run is `interrupted` when it has not ended and nothing runs it: `megascale run` resumes it.
    """
    from megascale.cli.local_job import run_folders

    rows = [row_of(folder) for folder in run_folders(runs)]
    if as_json:
        echo(json.dumps({"runs": rows}, indent=2))
    elif rows:
        _print_table(rows, time.time())
    else:
        echo(f"no runs in {runs}/", err=True)


def row_of(folder: Path) -> dict[str, Any]:
    """Return one run as JSON values; `startedAt` is in Unix seconds, None before its driver began."""
    from megascale.cli.local_job import standing
    from megascale.observe.rundir import RunDir

    run = RunDir(folder)
    try:
        found = standing(run)
    except InputError as error:
        return _row(folder, DAMAGED, str(error))
    row = _row(folder, found.state, found.reason)
    row |= {"step": found.step, "steps": found.steps, "attempt": found.attempt}
    row["startedAt"] = found.began or None
    return row | _of_driver(run.root, found)


def _row(folder: Path, state: str, reason: str) -> dict[str, Any]:
    row = {"job": folder.name, "folder": str(folder), "state": state, "reason": reason}
    return row | {"step": None, "steps": None, "attempt": None, "startedAt": None}


def _of_driver(folder: Path, found: Standing) -> dict[str, Any]:
    """What the driver knows better than the files; nothing if it does not answer."""
    from megascale.cli.local_job import watch_once
    from megascale.observe.rundir import RunDir

    if not found.live:
        return {}
    try:
        document = asyncio.run(watch_once(RunDir(folder), _ANSWER_S))
    except UnreachableError:
        return {}
    known = {name: document[name] for name in ("state", "reason", "step", "steps", "attempt")}
    return known if document["step"] or found.steps is not None else known | {"steps": None}


def _print_table(rows: list[dict[str, Any]], now: float) -> None:
    cells = [("JOB", "STATE", "STEP", "ATTEMPT", "AGE"), *(_cells(row, now) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        echo("   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cells(row: dict[str, Any], now: float) -> tuple[str, ...]:
    step = f"{row['step']}/{row['steps'] or '?'}" if row["step"] or row["steps"] else "-"
    age = "-" if row["startedAt"] is None else age_text(now - row["startedAt"])
    return row["job"], row["state"], step, str(row["attempt"] or "-"), age


def age_text(seconds: float) -> str:
    """Return a duration in its largest unit, as kubectl does: 45s, 3m, 5h, 12d."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
