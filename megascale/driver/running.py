"""The interface of a running driver for its gRPC service and background services."""

from __future__ import annotations

import asyncio
from typing import Protocol

from megascale.core.contract import events as ev
from megascale.core.machine import Core
from megascale.driver.links import AgentLink, Links
from megascale.driver.revisions import Revisions
from megascale.driver.status import StatusBoard
from megascale.job import TrainingJob
from megascale.rpc import megascale_pb2 as pb


class RunningDriver(Protocol):
    """Implemented by `Driver`; a protocol avoids import cycles.

    Attributes:
        done: set when the job has ended and every node is released.
        changed: set after every decision; the service that publishes the status clears it.
        revisions: the manifests that agents may fetch.
    """

    done: asyncio.Event
    changed: asyncio.Event
    term: int
    core: Core
    board: StatusBoard
    links: Links
    revisions: Revisions

    def post(self, event: ev.Event) -> None:
        """Queue an event for the core."""

    def attach(self, link: AgentLink, message: pb.AgentMessage) -> bool:
        """Register an agent's new stream; returns whether it was accepted."""

    def receive(self, link: AgentLink, message: pb.AgentMessage) -> None:
        """Handle one message of an attached agent."""

    def detach(self, link: AgentLink) -> None:
        """Unregister the stream after it has ended."""

    def command(self, request: pb.CommandRequest) -> tuple[bool, str]:
        """Queue a command of a user; returns whether it was accepted, and a message that gives the reason."""

    def change_manifest(self, text: str) -> tuple[bool, str]:
        """Adopt thresholds of a manifest given as canonical JSON; returns whether, and a message.

        A change that needs a restart of the ranks is refused, and any change of a job on a cluster.
        """

    def change_spec(self, job: TrainingJob) -> None:
        """Adopt the manifest if its revision differs from the current one.

        New thresholds apply immediately; what the ranks run changes at the next launch.

        Raises:
            InputError: the manifest is too large to be kept with the record.
        """
