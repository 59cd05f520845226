"""The gRPC face of a driver."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import grpc

from megascale.driver.links import AgentLink
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import METADATA_KEY
from megascale.rpc.megascale_pb2_grpc import DriverServicer

if TYPE_CHECKING:
    from megascale.driver.driver import Driver

_WATCH_S: Final = 0.25


class Service(DriverServicer):
    """Checks the caller's token and hands everything to the driver."""

    def __init__(self, driver: Driver, token: str) -> None:
        self._driver = driver
        self._expected = f"Bearer {token}"

    async def _authenticate(self, context: grpc.aio.ServicerContext) -> None:
        given = dict(context.invocation_metadata() or ()).get(METADATA_KEY, "")
        if not hmac.compare_digest(str(given), self._expected):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not this run's")

    async def Attach(  # noqa: N802 - named by the contract
        self, requests: AsyncIterator[pb.AgentMessage], context: grpc.aio.ServicerContext
    ) -> None:
        await self._authenticate(context)
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("body") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with hello")
            return
        link = AgentLink(first.fence.node, first.fence.incarnation, _host(context.peer()))
        writer = asyncio.create_task(_forward(link, context))
        try:
            if not self._driver.attach(link, first):
                return
            async for message in requests:
                self._driver.receive(link, message)
        finally:
            self._driver.detach(link)
            await writer

    async def Watch(  # noqa: N802
        self, _request: pb.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.JobStatus]:
        await self._authenticate(context)
        while True:
            done = self._driver.done.is_set()
            yield pb.JobStatus(document=json.dumps(self._driver.board.document()).encode())
            if done:
                return
            try:
                await asyncio.wait_for(self._driver.done.wait(), _WATCH_S)
            except TimeoutError:
                continue

    async def Command(  # noqa: N802
        self, request: pb.CommandRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommandReply:
        await self._authenticate(context)
        ok, message = self._driver.command(request)
        return pb.CommandReply(ok=ok, message=message)


async def _forward(link: AgentLink, context: grpc.aio.ServicerContext) -> None:
    while (message := await link.outgoing()) is not None:
        try:
            await context.write(message)
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError):
            return


def _host(peer: str) -> str:
    """The address part of a gRPC peer such as ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000."""
    _, _, rest = peer.partition(":")
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "") or "127.0.0.1"
