"""A peer with a valid token that sends what no agent would: for tests of what a driver believes."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import DriverAddress, bearer, channel_to, read_address, stub_on


class HostilePeer:
    """One stream as the agent of `node`, with whatever token and incarnation; an async context manager.

    Args:
        token: default: that of the node's agent.
    """

    def __init__(
        self, run: RunDir, node: str, *, incarnation: str = "evil", token: str | None = None
    ) -> None:
        self.node, self.incarnation = node, incarnation
        self.term = self.attempt = 0
        address = read_address(run.driver_file)
        assert isinstance(address, DriverAddress)
        self._metadata = bearer(token or run.agent_token_file(node).read_text())
        self._channel = channel_to(address)
        self.call: grpc.aio.StreamStreamCall = stub_on(self._channel).Attach(metadata=self._metadata)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.cancel()
        await self._channel.close()

    async def send(self, **body: Any) -> None:
        """Send one message with the peer's own fence."""
        fence = pb.Fence(node=self.node, incarnation=self.incarnation, term=self.term, attempt=self.attempt)
        await self.call.write(pb.AgentMessage(fence=fence, **body))

    async def report(self, ranks: Iterable[pb.RankStatus]) -> None:
        await self.send(report=pb.Report(ranks=ranks))

    async def alert(self, text: str, rank: int = 0) -> None:
        """A line of a job's log that is shown to people."""
        log = pb.LogMatch(rank=rank, attempt=self.attempt, rule="r", category="c", action="alert", line=text)
        await self.send(log=log)

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the driver ended the stream, once it has."""
        return await self.call.code(), str(await self.call.details())
