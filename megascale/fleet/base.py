"""The interface through which a driver acquires and releases nodes and learns of their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from megascale.errors import MegascaleError


class FleetRefusedError(MegascaleError):
    """The fleet cannot or may not carry out a request; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class SlotEvent:
    """A slot has lost its node or will lose it soon.

    Attributes:
        at: when, in Unix seconds.
        planned: the cause is a drain or preemption, not a fault of the node.
        leaving: the node still runs and will be lost soon.
        injected: a fault in the job's manifest (`faults`) caused it.
    """

    node: str
    reason: str
    at: float
    planned: bool = False
    leaving: bool = False
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Result of a probe; `healthy` is None if the probe was inconclusive."""

    healthy: bool | None
    detail: str


class Fleet(Protocol):
    """Supplies nodes. Calls raise FleetRefusedError if they cannot be carried out.

    A driver that does not know whether its predecessor's call was carried out makes it again, with the same
    `effect_id`; then nothing more is to be done than was left undone.
    """

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        """Find the slots that an earlier driver acquired, and call `on_event` for changes from now on."""

    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None:
        """Request `count` more nodes, none of them in `avoid`; each is known once its agent connects."""

    async def release(self, node: str) -> None:
        """Release the node; no SlotEvent follows."""

    async def restart(self, effect_id: str, node: str) -> None:
        """Restart the node's agent."""

    async def quarantine(self, node: str, incident: str) -> None:
        """Take the node out of service for all jobs, on account of the given incident id."""

    def labels(self, node: str) -> Mapping[str, str]:
        """Return the node's known topology labels, by the keys in `Policy.topology_keys`."""

    async def probe(self, node: str) -> Health:
        """Check whether the node is alive without using its agent."""

    async def close(self) -> None:
        """Release every node of the job."""
