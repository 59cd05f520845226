"""`megascale status` and `megascale evict`: look at a running job, take a node out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from megascale.cli.output import echo
from megascale.core.contract.vocabulary import Command
from megascale.errors import InputError, UnreachableError
from megascale.observe.text import shown

STATUS_EPILOG: Final = "Examples: megascale status quickstart | megascale status runs/quickstart --json"
EVICT_EPILOG: Final = 'Example: megascale evict node-1 --job quickstart --reason "fan noise"'
_TIMEOUT_S: Final = 10.0
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds runs/<job>/.")]


def status(
    job: Annotated[
        str, typer.Argument(metavar="[JOB]", help="Name, or folder of the run; default: the only one.")
    ] = "",
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the status document.")] = False,
) -> None:
    """Show a job's nodes, ranks, progress and incidents. Exit code 3 when its driver does not answer."""
    from megascale.cli.safe_console import safe_console
    from megascale.cli.view import render

    document = _live_or_last(_find(runs, job))
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        safe_console().print(render(shown(document)))


def evict(
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Node to take out, as named by `megascale status`.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the incident.")],
    job: Annotated[
        str, typer.Option("--job", help="Name, or folder of the run; default: the only one.")
    ] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Save, take the node out of the job, and go on without it; the job never uses it again."""
    import getpass

    from megascale.rpc import megascale_pb2 as pb

    request = pb.CommandRequest(command=Command.EVICT, node=node, reason=reason, by=getpass.getuser())
    reply = asyncio.run(_command(_find(runs, job), request))
    if not reply.ok:
        raise InputError(reply.message)
    echo(f"{node} is being evicted", err=True)


def _find(runs: Path, job: str) -> Path:
    """The run's folder from a name, a path, or nothing when there is only one run."""
    if job:
        for candidate in (Path(job), runs / job):
            if (candidate / "job.yaml").exists():
                return candidate
    found = sorted(path.parent for path in runs.glob("*/job.yaml"))
    names = ", ".join(path.name for path in found) or "none"
    if job or len(found) != 1:
        raise InputError(f"{job or 'no job named'}: runs in {runs}/: {names}")
    return found[0]


def _live_or_last(root: Path) -> dict[str, Any]:
    """The driver's document; of a job that ended, its summary."""
    try:
        return asyncio.run(_watch_once(root))
    except UnreachableError:
        summary = root / "summary.json"
        if not summary.exists():
            raise
        document: dict[str, Any] = json.loads(summary.read_text())
        return document


async def _watch_once(root: Path) -> dict[str, Any]:
    from megascale.rpc import megascale_pb2 as pb

    document: dict[str, Any] = {}
    async with _stub(root) as (stub, metadata):
        call = stub.Watch(pb.WatchRequest(), metadata=metadata, timeout=_TIMEOUT_S)
        async for message in call:
            document = json.loads(message.document)
            break
        call.cancel()
    return document


async def change_manifest(root: Path, manifest: str) -> tuple[bool, str]:
    """Hand canonical JSON of a manifest to the driver of a run; returns whether it took it, and a message."""
    from megascale.rpc import megascale_pb2 as pb

    async with _stub(root) as (stub, metadata):
        request = pb.ManifestRequest(manifest=manifest)
        reply = await stub.ChangeManifest(request, metadata=metadata, timeout=_TIMEOUT_S)
    return reply.ok, reply.message


async def _command(root: Path, request: Any) -> Any:  # noqa: ANN401 - protobuf messages
    async with _stub(root) as (stub, metadata):
        return await stub.Command(request, metadata=metadata, timeout=_TIMEOUT_S)


@contextlib.asynccontextmanager
async def _stub(root: Path) -> AsyncIterator[tuple[Any, tuple[tuple[str, str], ...]]]:
    """An open stub and its call metadata; gRPC's errors become UnreachableError."""
    import grpc

    from megascale.observe.rundir import RunDir
    from megascale.rpc.connect import bearer, channel_to, read_address, read_token, stub_on

    run = RunDir(root)
    address = read_address(run.driver_file)
    if address is None:
        raise UnreachableError(f"{root}: no driver is running; start it with `megascale run`")
    async with channel_to(address) as channel:
        try:
            yield stub_on(channel), bearer(read_token(run.token_file))
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{root}: the driver does not answer ({error.code().name})") from error
