"""`megascale run`: train a job on this machine, under supervision, with a live view."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.core.contract.vocabulary import FinishState
from megascale.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from megascale.cli.supervisor import Supervisor
    from megascale.cli.view import View
    from megascale.job import TrainingJob
    from megascale.observe.rundir import RunDir

EPILOG: Final = (
    "Examples: megascale run examples/quickstart.yaml | "
    "megascale run job.yaml --set spec.steps=500 | "
    "megascale run job.yaml --fresh --inject kill-rank:rank=1,step=60 | megascale run job.yaml --json"
)
_MINIMUM_FREE_BYTES: Final = 64 << 20
_PATIENCE_S: Final = 0.5


def run(
    manifest: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="A TrainingJob manifest.")],
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds runs/<job>/.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier run and start over.")] = False,
    inject: Annotated[
        list[str] | None,
        typer.Option("--inject", help="A fault to inject, such as kill-rank:rank=1,step=60; repeatable."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A field that counts instead of the file's; repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> None:
    """Train a job here: nodes are local processes, everything else is what a cluster uses.

    Running a job again resumes it; a finished one says so. A job that is already running is attached to, and
    thresholds that the manifest changes (health, detection, recovery, logRules and so on) count at once.
    Ctrl-C saves a checkpoint and stops; a second Ctrl-C stops at once. Where the job was attached to, Ctrl-C
    detaches and the job goes on.
    """
    from megascale.cli.run_folder import claim
    from megascale.cli.supervisor import Supervisor
    from megascale.cli.view import make_view
    from megascale.job import load_job, parse_inject, with_faults
    from megascale.observe.rundir import RunDir

    job = load_job(manifest, changes=changes or ())
    if inject:
        job = with_faults(job, [parse_inject(text) for text in inject])
    rundir = RunDir(runs / job.metadata.name)
    view = make_view(rundir, as_json=as_json)
    with claim(rundir) as lock:
        if not lock.owned and fresh:
            raise InputError(f"{job.metadata.name} is running; stop it before --fresh")
        supervisor = Supervisor(rundir, view, lock)
        if not lock.owned:
            finished = _attach(supervisor, rundir, job, view)
        elif not fresh and supervisor.driver_lives():
            # It outlived its `megascale run`, and the ranks run by the manifest that it has.
            _apply_changes(rundir, job, view)
            finished = None
        else:
            _prepare(rundir, job, view, fresh=fresh)
            finished = finished_summary(rundir, job)
        if finished is not None:
            at = f" at step {finished['step']}" if finished["step"] else ""
            view.note(f"{job.metadata.name} is complete{at}; --fresh starts over")
            _end(finished, as_json=as_json)
            return
        summary, interrupted = asyncio.run(supervisor.supervise())
    if lock.owned or not interrupted:
        view.summary(summary)
    _end(summary, as_json=as_json)
    if interrupted:
        raise typer.Exit(130)
    if summary.get("state") != FinishState.COMPLETED:
        raise typer.Exit(1)


def _attach(supervisor: Supervisor, rundir: RunDir, job: TrainingJob, view: View) -> dict[str, Any] | None:
    """Wait for the driver of the run that owns the job, and hand it what the manifest changes.

    Returns:
        The summary, if the owner found that the job is complete.

    Raises:
        UnreachableError: the owner ended before it had a driver.
    """
    if asyncio.run(_driver_comes(supervisor, view)):
        _apply_changes(rundir, job, view)
        return None
    finished = finished_summary(rundir, job)
    if finished is None:
        name = job.metadata.name
        raise UnreachableError(
            f"the `megascale run` that prepared {name} ended without a driver; run it again"
        )
    return finished


async def _driver_comes(supervisor: Supervisor, view: View) -> bool:
    """Wait until the run that owns the job has a driver; says so after a while. False if it ended without."""
    coming = asyncio.ensure_future(supervisor.driver_comes())
    done, _ = await asyncio.wait({coming}, timeout=_PATIENCE_S)
    if not done:
        view.note("this job is being prepared by another `megascale run`; waiting for its driver")
    return await coming


def _end(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")


def _prepare(rundir: RunDir, job: TrainingJob, view: View, *, fresh: bool) -> None:
    """Everything that can be wrong is found before a process is started."""
    from megascale.cli.here import check_program, check_settings
    from megascale.cli.run_folder import empty
    from megascale.driver.record import read_record
    from megascale.job import resolved_yaml
    from megascale.observe.rundir import write_atomically
    from megascale.rpc.connect import loopback_host

    check_program(job.spec)
    check_settings(job.spec)
    if fresh:
        empty(rundir, job.metadata.name)
    try:
        read_record(rundir)
        _check_space(rundir.root)
        _prepare_data(job, view)
        _note_resume(job, rundir, view)
        write_atomically(rundir.job_file, resolved_yaml(job))
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or rundir.root}: {error.strerror}") from error
    loopback_host()


def _note_resume(job: TrainingJob, rundir: RunDir, view: View) -> None:
    from megascale.cli.here import check_resume

    resumed = check_resume(job, rundir)
    if resumed is not None:
        commit, notes = resumed
        for note in notes:
            view.note(f"resuming from step {commit.step}: {note}")


def _apply_changes(rundir: RunDir, job: TrainingJob, view: View) -> None:
    """Hand changed thresholds to the driver of the running job.

    Faults are those that the job was started with.

    Raises:
        InputError: the manifest changes what ranks have read, or the driver refuses it for another reason.
    """
    from megascale.cli.local_job import change_manifest
    from megascale.job import canonical_json, load_job, resolved_yaml
    from megascale.observe.rundir import write_atomically

    running = load_job(rundir.job_file)
    spec = job.spec.model_copy(update={"faults": running.spec.faults})
    changed = job.model_copy(update={"spec": spec})
    if canonical_json(changed) == canonical_json(running):
        return
    accepted, message = asyncio.run(change_manifest(rundir, canonical_json(changed)))
    if not accepted:
        raise InputError(f"{job.metadata.name} is running with another manifest: {message}")
    write_atomically(rundir.job_file, resolved_yaml(changed))
    view.note("the changes of the manifest are in force")


def _check_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < _MINIMUM_FREE_BYTES:
        raise InputError(
            f"{root}: {free >> 20} MiB are free, at least {_MINIMUM_FREE_BYTES >> 20} are needed"
        )


def _prepare_data(job: TrainingJob, view: View) -> None:
    megatron = job.spec.runtime.megatron
    if megatron is None:
        return
    from megascale.cli.data import progress_bar
    from megascale.data.ensure import ensure_prepared

    with progress_bar(f"preparing {megatron.data.title}") as on_progress:
        made = ensure_prepared(
            megatron.data, megatron.model.vocab_size, on_progress=on_progress, notify=view.note
        )
    if made is not None:
        view.note(f"prepared {made.prefix}: {made.description.tokens:,} tokens")


def finished_summary(rundir: RunDir, job: TrainingJob) -> dict[str, Any] | None:
    """The summary of a job that completed all the steps the manifest asks for; a script decides itself."""
    try:
        summary: dict[str, Any] = json.loads(rundir.summary_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    stepped = job.spec.runtime.command is not None or int(summary.get("step", 0)) >= job.spec.steps
    return summary if summary.get("state") == FinishState.COMPLETED and stepped else None
