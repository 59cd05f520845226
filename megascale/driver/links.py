"""The driver's side of the agents' gRPC streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from megascale.driver.border import RefusedMessageError
from megascale.errors import MegascaleError
from megascale.rpc import megascale_pb2 as pb

_OUTBOX: Final = 256
_HEARD_S: Final = 6.0
_LATE_S: Final = 1.0


class NodeLostError(MegascaleError):
    """The stream to the node ended, or the node is gone, before an order was answered."""


class OrderFailedError(MegascaleError):
    """Agents reported that an order failed, or did not answer in time; `nodes` lists their nodes."""

    def __init__(self, message: str, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.nodes = nodes


class AgentLink:
    """The stream of one agent; sends orders and matches results to them.

    Attributes:
        address: host name or IP address at which other nodes reach this node's ranks.
        pod: name of the agent's pod, "" if it does not run in one.
        labels: of the node, from the agent and the fleet.
        report: the newest report of the agent.
        attempt: the attempt of the agent's newest message.
        heard_at: monotonic time of the agent's newest message, in seconds.
    """

    def __init__(self, node: str, incarnation: str, address: str, pod: str = "") -> None:
        self.node, self.incarnation, self.address, self.pod = node, incarnation, address, pod
        self.labels: dict[str, str] = {}
        self.report = pb.Report()
        self.attempt = 0
        self.heard_at = time.monotonic()
        self._outbox: asyncio.Queue[pb.DriverMessage | None] = asyncio.Queue(_OUTBOX)
        self._waiting: dict[str, asyncio.Future[pb.CommandResult]] = {}

    @property
    def is_heard(self) -> bool:
        """Whether the agent has sent a message within the last 6 seconds."""
        return time.monotonic() - self.heard_at < _HEARD_S

    def send(self, message: pb.DriverMessage) -> None:
        """Queue a message for the agent; it is dropped if 256 messages are already waiting."""
        if not self._outbox.full():
            self._outbox.put_nowait(message)

    async def order(self, message: pb.DriverMessage) -> pb.CommandResult:
        """Send an order and wait for its answer.

        Raises:
            OrderFailedError: the agent reported a failure.
            NodeLostError: the stream ended before the answer.
        """
        future: asyncio.Future[pb.CommandResult] = asyncio.get_running_loop().create_future()
        self._waiting[message.command_id] = future
        self.send(message)
        try:
            result = await future
        finally:
            self._waiting.pop(message.command_id, None)
        if not result.ok:
            raise OrderFailedError(f"{self.node}: {result.reason}", (self.node,))
        return result

    def answered(self, result: pb.CommandResult) -> None:
        """Hand a result to the caller of `order` that waits for it; ignored if there is none."""
        future = self._waiting.get(result.command_id)
        if future is not None and not future.done():
            future.set_result(result)

    def close(self) -> None:
        """End the stream; pending calls of `order` raise NodeLostError."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NodeLostError(f"{self.node} is gone"))
        if self._outbox.full():
            self._outbox.get_nowait()
        self._outbox.put_nowait(None)

    async def outgoing(self) -> pb.DriverMessage | None:
        """Wait for the next message to send to the agent; None means that the link was closed."""
        return await self._outbox.get()


class Links:
    """The current link of each connected node."""

    def __init__(self) -> None:
        self._links: dict[str, AgentLink] = {}
        self._gone: set[str] = set()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    def __iter__(self) -> Iterator[AgentLink]:
        return iter(list(self._links.values()))

    def get(self, node: str) -> AgentLink | None:
        return self._links.get(node)

    def check_identity(self, link: AgentLink) -> None:
        """Check that no other agent of the link's node is connected.

        Raises:
            RefusedMessageError: one is, and was heard within the last 6 seconds.
        """
        older = self._links.get(link.node)
        if older is not None and older.incarnation != link.incarnation and older.is_heard:
            raise RefusedMessageError(
                f"fence.incarnation is {link.incarnation}, expected {older.incarnation}, whose stream is open"
            )

    def attach(self, link: AgentLink) -> None:
        """Register a link; an older link of the same node is closed."""
        older = self._links.get(link.node)
        self._links[link.node] = link
        self._gone.discard(link.node)
        if older is not None:
            older.close()
        self._wake(link.node)

    def detach(self, link: AgentLink) -> None:
        """Unregister a link whose stream ended; the node's agent may reconnect."""
        if self._links.get(link.node) is link:
            del self._links[link.node]
        link.close()

    def lost(self, node: str) -> None:
        """Close the node's link for good; callers that wait for the node get NodeLostError."""
        self._gone.add(node)
        link = self._links.pop(node, None)
        if link is not None:
            link.close()
        self._wake(node)

    def _wake(self, node: str) -> None:
        for waiter in self._waiters.pop(node, []):
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, node: str) -> AgentLink:
        """Return the node's link, waiting until its agent connects if there is none.

        Raises:
            NodeLostError: the node is gone.
        """
        while node not in self._links:
            if node in self._gone:
                raise NodeLostError(f"{node} is gone")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(node, []).append(waiter)
            await waiter
        return self._links[node]

    async def order(self, node: str, message: pb.DriverMessage, timeout_s: float) -> pb.CommandResult:
        """Send an order to the node and wait for its answer; sends it again if the agent reconnects.

        A wait that ended late, because this process did not run, begins again: the answer could not be read.

        Raises:
            OrderFailedError: the agent reported a failure.
            NodeLostError: the node is gone.
            TimeoutError: there was no answer within `timeout_s` seconds.
        """
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._answer(node, message)
            except TimeoutError:
                if clock() - due < _LATE_S:
                    raise

    async def _answer(self, node: str, message: pb.DriverMessage) -> pb.CommandResult:
        while True:
            link = await self.wait_for(node)
            try:
                return await link.order(message)
            except NodeLostError:
                if node in self._gone:
                    raise
