"""A running driver, as its gRPC service and the services beside it see it."""

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
    """Implemented by `Driver`; a protocol, so that its parts need not import it.

    Attributes:
        done: set when the job ended and every node was let go.
        changed: set whenever something was decided; whoever shows the status clears it.
        revisions: the manifests that agents may ask for.
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
        """A new stream of an agent; whether it may stay."""

    def receive(self, link: AgentLink, message: pb.AgentMessage) -> None:
        """One message of an attached agent."""

    def detach(self, link: AgentLink) -> None:
        """The stream ended."""

    def command(self, request: pb.CommandRequest) -> tuple[bool, str]:
        """What a person asks for; whether it was accepted, and why not."""

    def change_spec(self, job: TrainingJob) -> None:
        """The manifest may have changed: thresholds count at once, what ranks run at the next launch.

        Raises:
            InputError: it is too large.
        """
