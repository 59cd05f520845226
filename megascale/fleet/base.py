"""What a driver needs of its environment: nodes to train on, and word of what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from megascale.errors import MegascaleError


class FleetRefusedError(MegascaleError):
    """The fleet cannot or will not do it, with the reason in words."""


@dataclass(frozen=True, slots=True)
class SlotEvent:
    """A slot lost its node, or will lose it soon.

    Attributes:
        at: Unix seconds.
        planned: drain or preemption, no fault of the node.
        leaving: the node is still there.
        injected: the job's own `faults` did it.
    """

    node: str
    reason: str
    at: float
    planned: bool = False
    leaving: bool = False
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Answer to a probe; `healthy` None = could not tell."""

    healthy: bool | None
    detail: str


class Fleet(Protocol):
    """Every call is idempotent and raises FleetRefusedError when it cannot be done."""

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        """Find the slots of an earlier driver and begin reporting events."""

    async def acquire(self, count: int, avoid: tuple[str, ...]) -> None:
        """Bring up `count` more nodes; they show themselves by their agents' hello."""

    async def release(self, node: str) -> None:
        """Give the node back."""

    async def restart(self, node: str) -> None:
        """Restart the node's agent."""

    async def quarantine(self, node: str, incident: str) -> None:
        """Take the node out of service for everybody."""

    def labels(self, node: str) -> Mapping[str, str]:
        """What is known of where the node is in the network (`Policy.topology_keys`)."""

    async def probe(self, node: str) -> Health:
        """Whether the node is alive, asked past its agent."""

    async def close(self) -> None:
        """Give back every node; returns when they are gone."""
