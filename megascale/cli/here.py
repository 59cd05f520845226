"""Checks of a job against this machine: its data, program, checkpoint, devices and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from megascale.errors import CheckpointError, InputError, ManifestIssue, UnreachableError

if TYPE_CHECKING:
    from megascale.core.contract.lineage import Commit
    from megascale.data.prepare import OnProgress
    from megascale.job import JobSpec, TrainingJob
    from megascale.observe.rundir import RunDir

_COMMAND: Final = "spec.runtime.command.args"
_DATA: Final = "spec.runtime.megatron.data"


@dataclass(slots=True)
class Inspection:
    """What was found here about a job.

    Attributes:
        issues: what would end the job; notes: what a person should know.
        checked, not_checked: what was checked, and what could not be, one line each.
    """

    issues: list[ManifestIssue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def refuse(self, path: str, message: str) -> None:
        """Add a problem of the field `path`, or of the one below it whose name begins the message."""
        first, _, rest = message.partition(" ")
        if first.startswith(path):
            path, message = first.rstrip(":"), rest
        self.issues.append(ManifestIssue(path, message))


def inspect(job: TrainingJob, rundir: RunDir, on_progress: OnProgress) -> Inspection:
    """Check everything that can be checked here without starting or making anything."""
    found = Inspection()
    if job.spec.runtime.command is not None:
        _inspect_command(job.spec, found)
    else:
        _inspect_data(job.spec, found, on_progress)
        _inspect_engine(job.spec, found)
        _inspect_resume(job, rundir, found)
    found.not_checked.append("other machines: their devices, data and programs; ports and the network")
    found.not_checked.append("fields that only Kubernetes uses: scheduling, template")
    return found


def check_program(spec: JobSpec) -> None:
    """Find the program of a command, and the script that it is given.

    Raises:
        InputError: one of them is not there.
    """
    from megascale.agent.command import program_of, search_path

    command = spec.runtime.command
    if command is None:
        return
    program_of(command.args, search_path(os.environ | command.env))
    script = script_of(command.args)
    if script is not None and not Path(script).is_file():
        raise InputError(f"{_COMMAND}: {script}: no such script in {Path.cwd()}")


def script_of(args: Sequence[str]) -> str | None:
    """The script that a Python interpreter is given; None for a module, other options, or another program."""
    if not Path(args[0]).name.startswith("python") or len(args) < 2:
        return None
    plain = [arg for arg in args[1:] if arg not in ("-u", "-O", "-OO", "-B", "-E", "-I", "-s", "-S")]
    return plain[0] if plain and not plain[0].startswith("-") else None


def check_settings(spec: JobSpec) -> None:
    """Compare the settings that depend on the device with those of this machine, where they ask for one.

    Raises:
        InputError: the ranks would refuse them.
    """
    megatron = spec.runtime.megatron
    if megatron is None or (megatron.model.attention in ("auto", "reference") and not megatron.compile):
        return
    from megascale.engine.here import inspect_engine

    problems = inspect_engine(spec).problems
    if problems:
        raise InputError("\n".join(f"{path} {text}" for path, text in problems))


def check_resume(job: TrainingJob, rundir: RunDir) -> tuple[Commit, tuple[str, ...]] | None:
    """Compare the manifest with the checkpoint that the job would go on from.

    Returns:
        The checkpoint, and what the resume changes; None if there is no checkpoint to read.

    Raises:
        SettingsError: the job could not go on from it.
    """
    from megascale.checkpoint import CheckpointStore
    from megascale.engine.resume import check_shapes, continuation

    commit, megatron = _newest(rundir), job.spec.runtime.megatron
    if commit is None or megatron is None:
        return None
    try:
        manifest = CheckpointStore(rundir.checkpoints(job.spec.checkpoint.uri)).manifest(commit)
    except (CheckpointError, UnreachableError):  # the driver chooses another one, and says so
        return None
    found = continuation(commit.step, manifest.job_state, megatron, job.spec.steps)
    check_shapes(commit.step, {name: t.shape for name, t in manifest.tensors.items()}, megatron)
    return commit, found.notes


def _newest(rundir: RunDir) -> Commit | None:
    """The newest checkpoint that the job's record trusts."""
    from megascale.core.contract.codec import decode
    from megascale.core.decide.restore import newest_trusted
    from megascale.core.state.record import JobRecord
    from megascale.driver.record import read_record

    document = read_record(rundir)
    core: dict[str, Any] | None = document["core"] if document else None
    return newest_trusted(decode(JobRecord, core)) if core is not None else None


def _inspect_command(spec: JobSpec, found: Inspection) -> None:
    try:
        check_program(spec)
    except InputError as error:
        found.refuse(_COMMAND, str(error))
    else:
        found.checked.append("program: it is here")
    found.not_checked.append("what the program itself needs: its arguments, data, modules and memory")


def _inspect_data(spec: JobSpec, found: Inspection, on_progress: OnProgress) -> None:
    from megascale.data.ensure import check_data
    from megascale.data.indexed import bin_path, idx_path
    from megascale.data.sources import find_files

    megatron = spec.runtime.megatron
    assert megatron is not None
    data = megatron.data
    prefix = Path(data.path or "")
    if data.prepare_from and not (idx_path(prefix).exists() and bin_path(prefix).exists()):
        if _holds(lambda: find_files(data.prepare_from), _DATA, found):
            found.checked.append(f"data: {data.title} will be made, its sources are here")
        found.not_checked.append("data: the texts that it will be made from")
        return
    size = megatron.model.vocab_size
    if _holds(lambda: check_data(data, size, on_progress=on_progress), _DATA, found):
        found.checked.append(f"data: {data.title}: files are whole, all token ids are below vocabSize {size}")


def _inspect_engine(spec: JobSpec, found: Inspection) -> None:
    from megascale.engine.here import inspect_engine

    findings = inspect_engine(spec)
    for path, text in findings.problems:
        found.refuse(path, text)
    found.checked += findings.checked
    found.not_checked += findings.not_checked


def _inspect_resume(job: TrainingJob, rundir: RunDir, found: Inspection) -> None:
    try:
        resumed = check_resume(job, rundir)
    except InputError as error:
        found.refuse("spec.runtime.megatron", str(error))
        return
    if resumed is None:
        found.not_checked.append(f"checkpoint: {rundir.root} has none to go on from")
        return
    commit, notes = resumed
    found.checked.append(f"checkpoint: the job can go on from step {commit.step}")
    found.notes += notes


def _holds(check: Callable[[], object], path: str, found: Inspection) -> bool:
    try:
        check()
    except InputError as error:
        found.refuse(path, str(error))
        return False
    return True
