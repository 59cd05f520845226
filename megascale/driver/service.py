"""The gRPC service of a driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc

from megascale.driver.links import AgentLink
from megascale.driver.ports import Listener, NotAdmittedError
from megascale.driver.running import RunningDriver
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import METADATA_KEY
from megascale.rpc.megascale_pb2_grpc import DriverServicer

_WATCH_S: Final = 0.25
_HELLO_S: Final = 10.0


class Service(DriverServicer):
    """Authenticates every caller with the listener and forwards requests to the driver."""

    def __init__(self, driver: RunningDriver, listener: Listener) -> None:
        self._driver, self._listener = driver, listener

    async def _authenticate(self, context: grpc.aio.ServicerContext, node: str = "") -> None:
        given = str(dict(context.invocation_metadata() or ()).get(METADATA_KEY, ""))
        try:
            await self._listener.admit(given.removeprefix("Bearer "), node)
        except NotAdmittedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

    async def Attach(  # noqa: N802 - named by megascale.proto
        self, requests: AsyncIterator[pb.AgentMessage], context: grpc.aio.ServicerContext
    ) -> None:
        first = await _first_of(requests)
        if first is None or first.WhichOneof("body") != "hello" or not first.fence.node:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with hello")
            return
        await self._authenticate(context, first.fence.node)
        address = first.hello.host or _host(context.peer())
        link = AgentLink(first.fence.node, first.fence.incarnation, address, first.hello.pod)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_forward(link, context))
            try:
                if self._driver.attach(link, first):
                    async for message in requests:
                        self._driver.receive(link, message)
            finally:
                self._driver.detach(link)  # closes the link, which ends the _forward task

    async def Watch(  # noqa: N802
        self, _request: pb.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.JobStatus]:
        await self._authenticate(context)
        while True:
            done = self._driver.done.is_set()
            yield pb.JobStatus(document=self._driver.board.document_text())
            if done:
                return
            try:
                async with asyncio.timeout(_WATCH_S):
                    await self._driver.done.wait()
            except TimeoutError:
                continue

    async def Command(  # noqa: N802
        self, request: pb.CommandRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommandReply:
        await self._authenticate(context)
        ok, message = self._driver.command(request)
        return pb.CommandReply(ok=ok, message=message)

    async def Revision(  # noqa: N802
        self, request: pb.RevisionRequest, context: grpc.aio.ServicerContext
    ) -> pb.RevisionReply:
        await self._authenticate(context, request.node)
        manifest = self._driver.revisions.text(request.revision)
        if manifest is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the driver does not have that revision")
        return pb.RevisionReply(manifest=manifest)

    async def ChangeManifest(  # noqa: N802
        self, request: pb.ManifestRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommandReply:
        await self._authenticate(context)
        ok, message = self._driver.change_manifest(request.manifest)
        return pb.CommandReply(ok=ok, message=message)


async def _first_of(requests: AsyncIterator[pb.AgentMessage]) -> pb.AgentMessage | None:
    """Return the stream's first message, None if it ends or none arrives within 10 seconds."""
    try:
        async with asyncio.timeout(_HELLO_S):
            return await anext(aiter(requests), None)
    except TimeoutError:
        return None


async def _forward(link: AgentLink, context: grpc.aio.ServicerContext) -> None:
    while (message := await link.outgoing()) is not None:
        try:
            await context.write(message)
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError):
            return


def _host(peer: str) -> str:
    """Return the address part of a gRPC peer such as ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000."""
    _, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "") or "127.0.0.1"
