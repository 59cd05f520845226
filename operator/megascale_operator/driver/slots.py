"""What the operator says about the job's slots: ConfigMap `<job>-slots`, followed."""

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
    """A slot's pod; `leaving` says why it is on its way out, "" = it stays.

    Attributes:
        domains: of its node, in the order of the job's topology keys; "" = not known.
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
    """A pod that is no more."""

    pod: str
    uid: str
    node: str
    reason: str
    planned: bool
    at: float


class Slots:
    """The newest view. `listeners` are called after every change of it."""

    def __init__(self, api: KubeApi, namespace: str, job: str) -> None:
        self._api, self._namespace, self._job = api, namespace, job
        self.slots: tuple[Slot, ...] = ()
        self.gone: tuple[Gone, ...] = ()
        self.certificate = ""
        self.listeners: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        async for found in follow(self._api, CONFIG_MAPS, names.slots_map(self._job), self._namespace):
            if found is not None:
                self.take(found)

    def take(self, config_map: Obj) -> None:
        """A new version of the ConfigMap; a document that cannot be read changes nothing."""
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
        """Wait for the next change."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def on(self, node: str) -> Slot | None:
        """The slot on a node: of several pods there the one that stays, or the newest."""
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
