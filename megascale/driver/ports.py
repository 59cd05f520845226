"""Interfaces between a driver and its environment: listener, record, event log, fleet, background services.

On a workstation they are implemented with files and local processes, on a cluster with ConfigMaps and pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from megascale.core.eventlog import Entry, Gap, Header
from megascale.driver.record import RecordStore
from megascale.driver.running import RunningDriver
from megascale.errors import MegascaleError
from megascale.fleet.base import Fleet
from megascale.observe.logs import LogContext


class NotAdmittedError(MegascaleError):
    """The caller's token is not valid for the request."""


class EventSink(Protocol):
    """Stores the event log.

    Attributes:
        is_full: the driver should `begin` again soon: only a header may be the first line of the next file.
    """

    @property
    def is_full(self) -> bool: ...

    async def begin(self, header: Header, term: int) -> None:
        """Write the header, the first line of the log of the driver with this term.

        Raises:
            OSError: the header cannot be written.
        """

    async def append(self, entry: Entry | Gap) -> None:
        """Write one event and its effects; called before the effects are executed.

        Raises:
            OSError: the entry cannot be written. One with effects is tried again, another one left out.
        """

    async def close(self) -> None:
        """Write the entries that are still buffered, within a bounded time."""


class Listener(Protocol):
    """Binds the driver's server, publishes its address, and authenticates callers."""

    async def open(self, server: grpc.aio.Server) -> str:
        """Bind the server and return "host:port"."""

    async def announce(self, endpoint: str, term: int) -> None:
        """Publish the driver's endpoint and term for agents."""

    async def admit(self, token: str, node: str) -> None:
        """Check the caller's token.

        Args:
            node: the node that the caller is the agent of, "" for a user.

        Raises:
            NotAdmittedError: the token is not valid; the message gives the reason.
        """


class BackgroundService(Protocol):
    """A task that runs while the driver runs, e.g. publishes its status or forwards commands to it."""

    async def run(self, driver: RunningDriver) -> None:
        """Serve until cancelled.

        Raises:
            FencedError: another driver took over. This and any other error ends the driver.
        """


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """The environment of a driver.

    Attributes:
        shared_machine: all nodes share one machine, so spares are acquired only after the first launch.
        reopens: whether starting a driver for a job that has ended starts the job again.
        log_context: fields added to every line of the process's log; the driver updates the attempt.
    """

    record: RecordStore
    fleet: Fleet
    listener: Listener
    log: EventSink
    background_services: Sequence[BackgroundService] = field(default=())
    shared_machine: bool = False
    reopens: bool = False
    log_context: LogContext = field(default_factory=lambda: LogContext("driver"))
