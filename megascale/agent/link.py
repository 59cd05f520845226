"""The agent's gRPC stream to the driver; reconnects when it ends, to the next driver if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import grpc

from megascale.agent.config import AgentConfig
from megascale.errors import FencedError, UnreachableError
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import bearer, channel_to, read_address, read_token, stub_on
from megascale.rpc.megascale_pb2_grpc import DriverStub

log = logging.getLogger(__name__)

_BACKOFF_S: Final = 0.05
_BACKOFF_LIMIT_S: Final = 2.0
_OUTBOX: Final = 1024
_SLOTS: Final = 20
_REVISION_S: Final = 30.0
_REFUSALS: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)


def heartbeat_is_due(sent_at: float, now: float, period_s: float) -> bool:
    """Return whether a heartbeat is due.

    A period is divided into 20 slots that begin at the same Unix times on all nodes, and a heartbeat is due
    20 slots after the last. About a twentieth of the agents therefore send together, and a driver of
    thousands of nodes wakes up once for many heartbeats, which costs it a third less CPU time. The distance
    in slots is absolute, so a node whose clock is set back still sends heartbeats.

    Args:
        sent_at, now: Unix seconds.
    """
    slot_s = period_s / _SLOTS
    return abs(int(now / slot_s) - int(sent_at / slot_s)) >= _SLOTS


class Link:
    """Keeps one stream to the driver open.

    Messages that cannot be sent are dropped; those that must not be lost are sent again by `hello_messages`.
    From the moment `hello_messages` is called, messages are queued and sent after those that it returned.

    Args:
        hello_messages: returns the messages that begin every stream.
        handle_command: called with every message of the driver.

    Attributes:
        disconnected: set while there is no stream.
        last_contact: event loop time of the last message from a driver, in seconds.
    """

    def __init__(
        self,
        config: AgentConfig,
        hello_messages: Callable[[], list[pb.AgentMessage]],
        handle_command: Callable[[pb.DriverMessage], Awaitable[None]],
    ) -> None:
        self.disconnected = asyncio.Event()
        self.disconnected.set()
        self.last_contact = asyncio.get_running_loop().time()
        self._config, self._hello_messages, self._handle_command = config, hello_messages, handle_command
        self._outbox: asyncio.Queue[pb.AgentMessage] = asyncio.Queue(_OUTBOX)
        self._accepts = False
        self._highest_term = 0
        self._refusal = ""
        self._call: tuple[DriverStub, tuple[tuple[str, str], ...]] | None = None

    def send(self, message: pb.AgentMessage) -> None:
        """Queue a message for the current stream; dropped if there is none or 1024 messages are waiting."""
        if self._accepts and not self._outbox.full():
            self._outbox.put_nowait(message)

    @property
    def connected(self) -> bool:
        return not self.disconnected.is_set()

    @property
    def highest_term(self) -> int:
        return self._highest_term

    async def fetch_revision(self, revision: str) -> str:
        """Fetch the manifest of a revision, as canonical JSON, from the driver.

        Raises:
            UnreachableError: no driver is connected, or it does not answer or have the revision.
        """
        what = f"revision {revision[:12]} of the manifest"
        if self._call is None:
            raise UnreachableError(f"{what}: no driver is connected")
        stub, metadata = self._call
        request = pb.RevisionRequest(node=self._config.node, revision=revision)
        try:
            reply = await stub.Revision(request, metadata=metadata, timeout=_REVISION_S)
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{what}: {error.details()}") from error
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            raise UnreachableError(f"{what}: the stream to the driver ended") from error
        return str(reply.manifest)

    async def serve(self) -> None:
        """Connect, and reconnect after every loss with exponential backoff and jitter, until cancelled."""
        tries = 0
        while True:
            if await self._try_once():
                tries = 0
            tries += 1
            await asyncio.sleep(random.uniform(0, min(_BACKOFF_LIMIT_S, _BACKOFF_S * 2**tries)))

    async def _try_once(self) -> bool:
        """Open a stream and serve it until it ends; returns whether the driver sent a message."""
        address = read_address(self._config.driver_file)
        if address is None or address.term < self._highest_term:
            return False
        try:
            token = read_token(self._config.token_file)
            channel = channel_to(address, self._config.trust)
        except UnreachableError:
            return False
        came_up = False
        async with channel:
            stub, metadata = stub_on(channel), bearer(token)
            call = stub.Attach(metadata=metadata)
            try:
                # What happens while these messages are written is not in them, so it is queued from here on.
                self._accepts = True
                for message in self._hello_messages():
                    await call.write(message)
                self._call = stub, metadata
                self.disconnected.clear()
                came_up = await self._converse(call)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The stream ended during the hello messages; the next try finds this driver or its successor.
                await self._note_refusal(call)
            except asyncio.CancelledError:
                call.cancel()
                if _is_being_cancelled():
                    raise
            finally:
                self._accepts = False
                self.disconnected.set()
                self._call = None
                self._drain()
        return came_up

    async def _converse(self, call: grpc.aio.StreamStreamCall) -> bool:
        """Send and receive until the stream ends; returns whether the driver sent a message."""
        heard = False
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(call))
            try:
                async for message in call:
                    heard = True
                    await self._take(message)
            except FencedError as error:
                log.warning("%s", error)
                call.cancel()
            except grpc.aio.AioRpcError:
                await self._note_refusal(call)
            finally:
                writer.cancel()
        return heard

    async def _take(self, message: pb.DriverMessage) -> None:
        """Handle a message of a driver, unless its term is lower than the highest one seen.

        Raises:
            FencedError: the driver has a lower term.
        """
        self.last_contact = asyncio.get_running_loop().time()
        if message.term < self._highest_term:
            raise FencedError(f"a driver of term {message.term} speaks after one of {self._highest_term}")
        self._highest_term = message.term
        await self._handle_command(message)

    async def _note_refusal(self, call: grpc.aio.StreamStreamCall) -> None:
        """Log why the driver refused the stream; the same reason is logged once in a row."""
        if not call.done() or await call.code() not in _REFUSALS:
            return
        reason = str(await call.details())
        if reason != self._refusal:
            self._refusal = reason
            log.warning("the driver refused the stream: %s", reason)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        """Send queued messages until the stream ends; `_converse` detects the end too and reconnects."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await self._outbox.get())

    def _drain(self) -> None:
        while not self._outbox.empty():
            self._outbox.get_nowait()


def _is_being_cancelled() -> bool:
    """Return whether the current task is being cancelled; gRPC also raises CancelledError for ended calls."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
