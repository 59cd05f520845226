"""What a driver needs of its environment: where it listens and writes, its nodes, and services beside it.

On a workstation these are files and local processes, on a cluster ConfigMaps and pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from megascale.core.eventlog import Entry, Header
from megascale.driver.record import RecordStore
from megascale.driver.running import RunningDriver
from megascale.errors import MegascaleError
from megascale.fleet.base import Fleet
from megascale.observe.logs import LogContext


class NotAdmittedError(MegascaleError):
    """The caller's token does not entitle it to what it asks for."""


class EventSink(Protocol):
    """Where the event log goes."""

    def begin(self, header: Header, term: int) -> None:
        """The first line of a driver's life."""

    async def append(self, entry: Entry) -> None:
        """One event with its effects, before they are performed.

        Raises:
            OSError: it cannot be written, and decisions have to wait.
        """

    async def close(self) -> None:
        """Write what is left, within a bound of time."""


class Listener(Protocol):
    """How agents find this driver, why they trust it, and which of them it trusts."""

    async def open(self, server: grpc.aio.Server) -> str:
        """Bind the server; returns host:port."""

    async def announce(self, endpoint: str, term: int) -> None:
        """Tell agents where this driver is."""

    async def admit(self, token: str, node: str) -> None:
        """Check the caller's token; `node` is the one it wants to speak for, "" = a person.

        Raises:
            NotAdmittedError: with the reason.
        """


class BackgroundService(Protocol):
    """A task beside the driver's own: publishes its status, brings it commands from elsewhere."""

    async def run(self, driver: RunningDriver) -> None:
        """Serve until cancelled.

        Raises:
            FencedError: a successor was seen. This and any other error ends the driver.
        """


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """Everything a driver needs of its environment.

    Attributes:
        shared_machine: all nodes share one machine, so spares wait until the first launch is done.
        reopens: starting a driver for a job that ended starts the job again.
        log_context: what the lines of this process's log say of the job; the driver keeps the attempt in it.
    """

    record: RecordStore
    fleet: Fleet
    listener: Listener
    log: EventSink
    background_services: Sequence[BackgroundService] = field(default=())
    shared_machine: bool = False
    reopens: bool = False
    log_context: LogContext = field(default_factory=lambda: LogContext("driver"))
