"""A call that meets a server in the moment in which it closes."""

from __future__ import annotations

import asyncio
import struct

import grpc
import pytest

from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import DriverAddress, channel_to, stub_on

_PREFACE_BYTES = 24
_SETTINGS, _GOAWAY, _INTERNAL_ERROR = 4, 7, 2


def frame(kind: int, body: bytes = b"") -> bytes:
    """A frame of an HTTP/2 connection as a whole (RFC 9113, 4.1)."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, 0, 0) + body


async def say_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Open an HTTP/2 connection and take no stream on it."""
    await reader.readexactly(_PREFACE_BYTES)
    writer.write(frame(_SETTINGS) + frame(_GOAWAY, struct.pack(">II", 0, _INTERNAL_ERROR)))
    await reader.read()
    writer.close()


def test_the_call_fails_and_is_not_repeated_by_grpc() -> None:
    async def main() -> grpc.StatusCode:
        async with await asyncio.start_server(say_goodbye, "127.0.0.1", 0) as server:
            address = DriverAddress(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", pid=1, term=1)
            async with asyncio.timeout(5), channel_to(address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await anext(aiter(stub_on(channel).Watch(pb.WatchRequest())))
        return caught.value.code()

    assert asyncio.run(main()) is grpc.StatusCode.UNAVAILABLE
