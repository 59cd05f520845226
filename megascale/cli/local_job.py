"""Finds the runs of this machine, says how each stands, and reaches its driver."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.errors import InputError, ManifestError, UnreachableError
from megascale.observe.rundir import RunDir, is_locked

if TYPE_CHECKING:
    from megascale.core.state.record import JobRecord

INTERRUPTED: Final = "interrupted"
"""State of a job that has not ended and that no process runs."""
STARTING: Final = "starting"
"""State of a job whose `megascale run` has no driver yet."""
TIMEOUT_S: Final = 10.0
_TAIL_BYTES: Final = 16_384

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Name of the job, or folder of its run.", show_default=False)
]
OptionalJobArgument = Annotated[
    str, typer.Argument(metavar="[JOB]", help="Name, or folder of the run; default: the only one.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds runs/<job>/.")]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands, from its files alone; a running job's driver knows more.

    Attributes:
        live: whether its driver runs.
        ended: whether the job ended, in `state`, because of `reason`.
        state: as in the status document, or `INTERRUPTED`, or `STARTING`.
        step: the newest step that was written to metrics.jsonl or the job record.
        steps: those that the manifest asks for; None if it cannot be read or a script reports none.
        began: Unix seconds, 0.0 for a job whose driver has not begun.
    """

    name: str
    folder: Path
    live: bool
    ended: bool
    state: str
    reason: str = ""
    step: int = 0
    steps: int | None = None
    attempt: int = 0
    began: float = 0.0


def find_run(runs: Path, job: str) -> RunDir:
    """Return the run of a job given by name or folder, or the only run where `job` is empty.

    Raises:
        InputError: there is no such run, or there are several to choose from; lists them.
    """
    from megascale.job.base import did_you_mean

    if job:
        for candidate in (runs / job, Path(job)):
            if (candidate / "job.yaml").exists():
                return RunDir(candidate)
    found = run_folders(runs)
    names = [path.name for path in found]
    if not job and len(found) == 1:
        return RunDir(found[0])
    listed = ", ".join(names) or "none"
    if not job:
        raise InputError(f"name a job; runs in {runs}/: {listed}")
    hint = did_you_mean(job, names)
    raise InputError(f"{job}: no such run{f', {hint}' if hint else ''}; runs in {runs}/: {listed}")


def run_folders(runs: Path) -> list[Path]:
    """Return the folders in `runs` that hold a run, by name."""
    return sorted(path.parent for path in runs.glob("*/job.yaml"))


def driver_lives(run: RunDir) -> bool:
    """Whether the driver that driver.json names runs and holds the run."""
    import psutil

    from megascale.rpc.connect import read_address

    address = read_address(run.driver_file)
    return address is not None and psutil.pid_exists(address.pid) and is_locked(run.driver_lock)


def standing(run: RunDir) -> Standing:
    """Read how a run stands.

    Raises:
        InputError: its job record is damaged or of another version.
    """
    record, live = _record(run), driver_lives(run)
    ended = record is not None and record.finish_state is not None and not live
    if record is not None and record.finish_state is not None:
        state = str(record.finish_state)
    elif live:
        state = str(record.state) if record else STARTING
    else:
        state = STARTING if is_locked(run.supervisor_lock) else INTERRUPTED
    step = max(_last_step(run.metrics_file), record.best_step if record else 0)
    return Standing(
        name=run.root.resolve().name,
        folder=run.root,
        live=live,
        ended=ended,
        state=state,
        reason=record.finish_reason if record else "",
        step=step,
        steps=_steps(run, step),
        attempt=record.attempt if record else 0,
        began=record.ledger.started_at if record else 0.0,
    )


def ended_text(found: Standing) -> str:
    """Say how and where a job ended, in half a sentence."""
    reason = f" ({found.reason})" if found.reason else ""
    at = f" at step {found.step}" if found.step else ""
    return f"{found.name} has ended: {found.state}{at}{reason}"


def check_live(run: RunDir) -> None:
    """Do nothing where a driver runs or is about to.

    Raises:
        InputError: the job has ended.
        UnreachableError: it was interrupted: nothing of it runs.
    """
    found = standing(run)
    if found.ended:
        raise InputError(ended_text(found))
    if found.state == INTERRUPTED:
        raise UnreachableError(
            f"{found.name} is not running: it was interrupted at step {found.step}; "
            f"megascale run {run.job_file} resumes it"
        )


@contextlib.asynccontextmanager
async def driver_stub(run: RunDir) -> AsyncIterator[tuple[Any, tuple[tuple[str, str], ...]]]:
    """An open stub of the run's driver and its call metadata.

    Raises:
        UnreachableError: no driver runs, or it does not answer (gRPC's errors within the block too).
    """
    import grpc

    from megascale.rpc.connect import bearer, channel_to, read_address, read_token, stub_on

    address = read_address(run.driver_file)
    if address is None:
        raise UnreachableError(f"{run.root}: no driver is running; start it with `megascale run`")
    async with channel_to(address) as channel:
        try:
            yield stub_on(channel), bearer(read_token(run.token_file))
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{run.root}: the driver does not answer ({error.code().name})") from error


async def command(run: RunDir, request: Any) -> Any:  # noqa: ANN401 - protobuf messages
    """Give the driver a `CommandRequest`; returns its `CommandReply`."""
    async with driver_stub(run) as (stub, metadata):
        return await stub.Command(request, metadata=metadata, timeout=TIMEOUT_S)


async def watch_once(run: RunDir, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Return the driver's status document of now."""
    from megascale.rpc import megascale_pb2 as pb

    document: dict[str, Any] = {}
    async with driver_stub(run) as (stub, metadata):
        call = stub.Watch(pb.WatchRequest(), metadata=metadata, timeout=timeout_s)
        async for message in call:
            document = json.loads(message.document)
            break
        call.cancel()
    return document


async def change_manifest(run: RunDir, manifest: str) -> tuple[bool, str]:
    """Hand canonical JSON of a manifest to the driver of a run; returns whether it took it, and a message."""
    from megascale.rpc import megascale_pb2 as pb

    async with driver_stub(run) as (stub, metadata):
        request = pb.ManifestRequest(manifest=manifest)
        reply = await stub.ChangeManifest(request, metadata=metadata, timeout=TIMEOUT_S)
    return reply.ok, reply.message


def _record(run: RunDir) -> JobRecord | None:
    from megascale.core.contract.policy import Policy
    from megascale.core.machine import Core
    from megascale.driver.record import read_record

    record = read_record(run)
    return Core.restore(Policy(), record["core"] or {}).record if record else None


def _last_step(metrics: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 without one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def _steps(run: RunDir, step: int) -> int | None:
    from megascale.job import load_job

    try:
        spec = load_job(run.job_file).spec
    except ManifestError:
        return None
    return None if spec.runtime.command is not None and not step else spec.steps
