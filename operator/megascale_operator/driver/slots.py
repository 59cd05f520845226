"""Follows the ConfigMap `<job>-slots`, in which the operator publishes the state of the job's slots."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from megascale_operator.driver.follow import follow
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.resources import CONFIG_MAPS, Obj
from megascale_operator.reconcile import names

log = logging.getLogger(__name__)

SLOTS: Final = "slots.json"
CERTIFICATE: Final = "driver.crt"


@dataclass(frozen=True, slots=True)
class Slot:
    """The pod of a slot.

    Attributes:
        leaving: why the pod is about to be removed, "" if it is not.
        restarts: restarts of the pod's container.
        domains: the node's topology domains, in the order of the job's topology keys; "" = unknown.
    """

    pod: str
    uid: str
    node: str
    node_ready: bool
    phase: str
    ready: bool
    leaving: str
    restarts: int
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """A pod that no longer exists.

    Attributes:
        planned: it was removed by a drain, preemption or request, not by a fault.
        at: when, in Unix seconds; 0.0 = unknown.
    """

    pod: str
    uid: str
    node: str
    reason: str
    planned: bool
    at: float


class Slots:
    """The newest state of the job's slots.

    Attributes:
        certificate: the driver's certificate as PEM, "" before the operator has signed one.
        listeners: callbacks, called after every update.
    """

    def __init__(self, api: KubeApi, namespace: str, job: str) -> None:
        self._api, self._namespace, self._job = api, namespace, job
        self.slots: tuple[Slot, ...] = ()
        self.gone: tuple[Gone, ...] = ()
        self.certificate = ""
        self.listeners: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Follow the ConfigMap until cancelled."""
        async for found in follow(self._api, CONFIG_MAPS, names.slots_map(self._job), self._namespace):
            if found is not None:
                self.take(found)

    def take(self, config_map: Obj) -> None:
        """Update from a new version of the ConfigMap; one that cannot be parsed is ignored with a warning."""
        data: dict[str, str] = config_map.get("data") or {}
        try:
            document = json.loads(data.get(SLOTS) or "{}")
            slots = tuple(_slot(entry) for entry in document.get("slots", ()))
            gone = tuple(_gone(entry, self._job) for entry in document.get("gone", ()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("ConfigMap %s: %s cannot be read: %r", names.slots_map(self._job), SLOTS, error)
            return
        self.slots, self.gone, self.certificate = slots, gone, data.get(CERTIFICATE, "")
        for listener in self.listeners:
            listener()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait for the next update."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def on(self, node: str) -> Slot | None:
        """Return the slot on a node; of several pods there, one that is not leaving, then the newest."""
        found = [slot for slot in self.slots if slot.node == node]
        return max(found, key=lambda slot: (not slot.leaving, names.incarnation_of(slot.pod)), default=None)


def _slot(entry: dict[str, Any]) -> Slot:
    return Slot(
        pod=str(entry["pod"]),
        uid=str(entry["uid"]),
        node=str(entry.get("node", "")),
        node_ready=bool(entry.get("nodeReady", False)),
        phase=str(entry.get("phase", "")),
        ready=bool(entry.get("ready", False)),
        leaving=str(entry.get("leaving", "")),
        restarts=int(entry.get("restarts") or 0),
        domains=tuple(str(value) for value in entry.get("domains") or ()),
    )


def _gone(entry: dict[str, Any], job: str) -> Gone:
    return Gone(
        pod=names.slot_pod(job, int(entry["slot"]), int(entry["incarnation"])),
        uid=str(entry["uid"]),
        node=str(entry.get("node", "")),
        reason=str(entry.get("reason", "")),
        planned=bool(entry.get("planned", False)),
        at=float(entry.get("at") or 0.0),
    )
