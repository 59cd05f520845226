"""A stream on which the driver has nothing to say stays up, although its agent pings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import CHANNEL_OPTIONS, SERVER_OPTIONS
from megascale.rpc.megascale_pb2_grpc import DriverServicer, DriverStub, add_DriverServicer_to_server

_PING_MS = 1_000
_QUIET_S = 8.0


class Quiet(DriverServicer):
    """Reads and never answers."""

    async def Attach(  # noqa: N802
        self, requests: AsyncIterator[pb.AgentMessage], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DriverMessage]:
        async for message in requests:
            if message.WhichOneof("body") == "exit":
                yield pb.DriverMessage(term=1)


@pytest.mark.slow
def test_pings_on_a_quiet_stream_do_not_end_it() -> None:
    """The agent's pings, ten times as often."""
    pinging = {**dict(CHANNEL_OPTIONS), "grpc.keepalive_time_ms": _PING_MS}
    tolerant = {**dict(SERVER_OPTIONS), "grpc.http2.min_recv_ping_interval_without_data_ms": _PING_MS // 2}

    async def scenario() -> int:
        server = grpc.aio.server(options=tuple(tolerant.items()))
        add_DriverServicer_to_server(Quiet(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=tuple(pinging.items())) as channel:
            call = DriverStub(channel).Attach()
            await call.write(pb.AgentMessage(report=pb.Report()))
            await asyncio.sleep(_QUIET_S)
            await call.write(pb.AgentMessage(exit=pb.RankExit()))
            answer = await call.read()
        await server.stop(0)
        return int(answer.term)

    assert asyncio.run(scenario()) == 1
