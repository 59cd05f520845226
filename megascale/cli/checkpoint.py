"""`megascale checkpoint`: list the checkpoints of a job, and check every byte of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megascale.cli.output import echo
from megascale.errors import InputError

if TYPE_CHECKING:
    from megascale.checkpoint import CheckpointStore, CommitRecord, Scan, VerifyReport
    from megascale.core.contract.lineage import Commit, Lineage

app = typer.Typer(no_args_is_help=True, help="List the checkpoints of a job, and check every byte of them.")

Target = Annotated[
    str,
    typer.Argument(metavar="JOB|URI", help="Name of a job, its folder runs/<job>, or a checkpoint folder."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class _Place:
    """A store, and which of its commits count: from the job record, else from the commits themselves."""

    store: CheckpointStore
    scan: Scan
    lineage: Lineage
    attempt: int
    from_record: bool


@app.command(
    "list",
    epilog="Examples: megascale checkpoint list quickstart | "
    "megascale checkpoint list runs/quickstart/checkpoints --json",
)
def list_(target: Target, as_json: JsonFlag = False) -> None:
    """List checkpoints, newest last. One off the lineage is never restored; the next save prunes it."""
    from megascale.core.contract.lineage import is_on_lineage

    place = _find(target)
    rows = [
        {
            "step": record.step,
            "attempt": record.attempt,
            "onLineage": is_on_lineage(record.commit, place.lineage, place.attempt),
            "bytes": record.bytes,
            "files": record.files,
            "ageSeconds": round(max(0.0, time.time() - record.committed_at), 1),
            "parent": record.parent and record.parent.model_dump(),
        }
        for record in place.scan.records
    ]
    if as_json:
        document = {
            "uri": place.store.uri,
            "attempt": place.attempt,
            "lineageFrom": "record" if place.from_record else "commits",
            "checkpoints": rows,
            "damaged": place.scan.damaged,
        }
        echo(json.dumps(document, indent=2))
        return
    _print_rows(rows)
    for line in place.scan.damaged:
        echo(f"ignored: {line}", err=True)
    if not rows:
        echo(f"no checkpoints in {place.store.uri}", err=True)
    elif not place.from_record:
        echo(f"no job record here: lineage taken from the commits, up to attempt {place.attempt}", err=True)


@app.command(
    epilog="Examples: megascale checkpoint verify quickstart | "
    "megascale checkpoint verify /mnt/ckpt/llm --step 500"
)
def verify(
    target: Target,
    step: Annotated[int | None, typer.Option(help="Only the checkpoints of this step.", min=0)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read every byte and compare checksums. Exit code 1 if one is wrong, naming file and offset."""
    from megascale.checkpoint import verify as check

    place = _find(target)
    commits = [record.commit for record in place.scan.records if step in (None, record.step)]
    damaged = [] if step is not None else place.scan.damaged
    if not commits and not damaged:
        raise InputError(f"{place.store.uri}: {_nothing_to_verify(place.scan.records, step)}")
    reports = []
    for commit in commits:
        started = time.monotonic()
        report = check(place.store, commit)
        reports.append(report)
        if not as_json:
            _print_report(report, time.monotonic() - started)
    sound = not damaged and not any(report.damages for report in reports)
    if as_json:
        document = {
            "uri": place.store.uri,
            "sound": sound,
            "checkpoints": [_as_json(report) for report in reports],
            "damaged": damaged,
        }
        echo(json.dumps(document, indent=2))
    else:
        for line in damaged:
            echo(f"DAMAGED  {line}")
    if not sound:
        raise typer.Exit(1)


def _nothing_to_verify(records: Sequence[CommitRecord], step: int | None) -> str:
    if step is None:
        return "no checkpoints to verify"
    steps = ", ".join(str(value) for value in sorted({record.step for record in records})) or "none"
    return f"no checkpoint of step {step}; there are: {steps}"


def _find(target: str) -> _Place:
    """The store behind a job's name, a run's folder, or a checkpoint folder.

    Raises:
        InputError: there is no such folder, or the scheme is not supported.
    """
    from megascale.checkpoint import CheckpointStore

    for folder in (Path(target), Path("runs") / target):
        if (folder / "job.yaml").is_file():
            return _find_of_run(folder)
    store = CheckpointStore(target)
    if not store.storage.root.is_dir():
        raise InputError(f"{target}: no such job in runs/, run folder or checkpoint folder")
    return _derived(store)


def _find_of_run(folder: Path) -> _Place:
    from megascale.checkpoint import CheckpointStore
    from megascale.core.contract.codec import decode
    from megascale.core.state.record import JobRecord
    from megascale.driver.record import read_record
    from megascale.job import load_job
    from megascale.observe.rundir import RunDir

    run = RunDir(folder)
    store = CheckpointStore(run.checkpoints(load_job(run.job_file).spec.checkpoint.uri))
    document = read_record(run)
    if document is None or document["core"] is None:
        return _derived(store)
    record = decode(JobRecord, document["core"])
    return _Place(store, store.scan(), record.lineage, record.attempt, from_record=True)


def _derived(store: CheckpointStore) -> _Place:
    """Without a record: every commit says what its attempt resumed from, the newest attempt is current."""
    scan = store.scan()
    lineage: dict[int, Commit | None] = {
        record.attempt: record.parent.commit if record.parent else None for record in scan.records
    }
    return _Place(store, scan, lineage, max(lineage, default=0), from_record=False)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from megascale.cli.safe_console import safe_console

    table = Table(box=None)
    for title in ("STEP", "ATTEMPT", "LINEAGE", "SIZE", "FILES", "AGE", "RESUMED FROM"):
        table.add_column(
            title, justify="right" if title in ("STEP", "ATTEMPT", "SIZE", "FILES", "AGE") else "left"
        )
    for row in rows:
        parent = row["parent"]
        table.add_row(
            str(row["step"]),
            str(row["attempt"]),
            "yes" if row["onLineage"] else "no",
            _size(row["bytes"]),
            str(row["files"]),
            _age(row["ageSeconds"]),
            f"step {parent['step']}, attempt {parent['attempt']}" if parent else "scratch",
        )
    if rows:
        safe_console().print(table)


def _print_report(report: VerifyReport, seconds: float) -> None:
    name = _name(report.commit)
    if not report.damages:
        echo(f"sound    {name}: {report.boxes_read} boxes, {_size(report.bytes_read)} in {seconds:.1f} s")
    for damage in report.damages:
        echo(f"DAMAGED  {name}: {damage.message}" + (f" ({damage.tensor})" if damage.tensor else ""))


def _as_json(report: VerifyReport) -> dict[str, Any]:
    return {
        "step": report.commit.step,
        "attempt": report.commit.attempt,
        "sound": not report.damages,
        "bytes": report.bytes_read,
        "boxes": report.boxes_read,
        "damages": [{"message": damage.message, "tensor": damage.tensor} for damage in report.damages],
    }


def _name(commit: Commit) -> str:
    return f"step {commit.step} attempt {commit.attempt}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
