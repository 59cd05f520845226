"""A fleet of slot pods: the driver writes requests to `status.driver.requests`; the operator fulfils them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from megascale.driver.api import FleetRefusedError, Health, RunningDriver, SlotEvent, shutdown_order
from megascale_operator.driver.slots import Gone, Slot, Slots
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.departures import Departure

_MOST: Final = 64
_REASON: Final = 500
_OBEY_S: Final = 20.0
_ANSWER_S: Final = 600.0
_OURS: Final = ("released", "restart")
"""Prefixes of the reasons of departures that this driver requested."""
_DERIVED: Final = (
    "`requests` derives slots and nodes to avoid from the record, so a new driver requests the same"
)

UNUSED: Final[Mapping[str, Mapping[str, str]]] = {
    "Acquire": {"count": _DERIVED, "avoid": _DERIVED},
}
"""Effect -> field that this fleet does not use -> reason; extends `wire.LOCAL_ONLY`."""


class KubernetesFleet:
    """Implements `Fleet` with slot pods.

    The number of slots requested is derived from the core's record, so that a restarted driver requests the
    same number.

    Args:
        topology_keys: keys of the node labels that `labels` returns.

    Attributes:
        changed: callback, called when the requests may have changed.
    """

    def __init__(self, slots: Slots, topology_keys: Sequence[str] = ()) -> None:
        self._slots, self._topology_keys = slots, tuple(topology_keys)
        self._driver: RunningDriver | None = None
        self._on_event: Callable[[SlotEvent], None] = lambda _event: None
        self.changed: Callable[[], None] = lambda: None
        self._release: list[str] = []
        self._restart: dict[str, str] = {}
        self._quarantine: dict[tuple[str, str], Obj] = {}
        self._answers: Obj = {}
        self._answered = asyncio.Event()
        self._seen_gone: set[str] = set()
        self._told: dict[str, str] = {}
        self._later: asyncio.TaskGroup | None = None

    async def run(self, _driver: RunningDriver) -> None:
        """Run as a background service until cancelled; holds the tasks that escalate unanswered restarts."""
        async with asyncio.TaskGroup() as tasks:
            self._later = tasks
            await asyncio.Event().wait()

    def bind(self, driver: RunningDriver) -> None:
        """Set the driver that the fleet belongs to; must be called before `start`."""
        self._driver = driver

    @property
    def _core(self) -> Any:  # noqa: ANN401 - set before the first use
        if self._driver is None:
            raise AssertionError("the fleet is bound before it starts")
        return self._driver.core

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        self._on_event = on_event
        record = self._core.record
        expected = {*record.assignment, *record.spares}
        for gone in self._slots.gone:
            self._seen_gone.add(gone.uid)
            if gone.node in expected and self._slots.on(gone.node) is None:
                self._tell_gone(gone)
        self._slots.listeners.append(self._look)
        self._look()

    def _look(self) -> None:
        """Report events for slots that changed, and drop requests for pods that no longer exist."""
        for slot in self._slots.slots:
            if slot.leaving and slot.node and self._told.get(slot.uid) != slot.leaving:
                self._told[slot.uid] = slot.leaving
                self._tell_leaving(slot)
        for gone in self._slots.gone:
            if gone.uid not in self._seen_gone:
                self._seen_gone.add(gone.uid)
                self._told.pop(gone.uid, None)
                self._tell_gone(gone)
        present = {slot.pod for slot in self._slots.slots}
        self._release = [pod for pod in self._release if pod in present]
        self._restart = {pod: order for pod, order in self._restart.items() if pod in present}
        self.changed()

    def _tell_leaving(self, slot: Slot) -> None:
        """Report a slot that will leave soon, if planned; a failed slot is reported only when it is gone."""
        if not slot.leaving.startswith(_OURS) and Departure.was_planned(slot.leaving):
            self._on_event(SlotEvent(slot.node, slot.leaving, time.time(), planned=True, leaving=True))

    def _tell_gone(self, gone: Gone) -> None:
        """Report a lost pod, unless this driver requested it or another pod's agent runs on the node."""
        link = self._driver.links.get(gone.node) if self._driver else None
        replaced = link is not None and link.pod not in ("", gone.pod)
        if not replaced and not gone.reason.startswith(_OURS):
            node = gone.node or gone.pod
            self._on_event(SlotEvent(node, gone.reason, gone.at or time.time(), planned=gone.planned))

    def requests(self) -> Obj:
        """Return the value of `status.driver.requests` (docs/kubernetes.md).

        `slots` is the number of slots on nodes that the core knows, without those that are leaving or to be
        released, plus the number of nodes that the core has requested and not seen yet.
        """
        record = self._core.record
        known = {*self._core.live.nodes, *record.excluded, *record.lost}
        sent_away = {*self._release}
        held = sum(
            1
            for slot in self._slots.slots
            if slot.node in known and not slot.leaving and slot.pod not in sent_away
        )
        return {
            "slots": held + record.outstanding,
            "avoidNodes": sorted(record.excluded)[-_MOST:],
            "release": self._release[-_MOST:],
            "restart": [{"pod": pod, "id": order} for pod, order in self._restart.items()][-_MOST:],
            "quarantine": list(self._quarantine.values())[-_MOST:],
        }

    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None:  # noqa: ARG002
        self.changed()

    async def release(self, node: str) -> None:
        slot = self._slots.on(node)
        if slot is not None and slot.pod not in self._release:
            self._release.append(slot.pod)
        link = self._driver.links.get(node) if self._driver else None
        if self._driver and link is not None:
            link.send(shutdown_order(self._driver.term, "released"))
        self.changed()

    async def restart(self, effect_id: str, node: str) -> None:  # noqa: ARG002
        slot = self._slots.on(node)
        if slot is None:
            raise FleetRefusedError(f"{node} has no slot")
        link = self._driver.links.get(node) if self._driver else None
        if self._driver is None or link is None:
            self._request_restart(slot.pod)
            return
        link.send(shutdown_order(self._driver.term, "its container is to be restarted", restart=True))
        if self._later is not None:
            self._later.create_task(self._escalate_restart(node, link.incarnation, slot))

    async def _escalate_restart(self, node: str, incarnation: str, slot: Slot) -> None:
        """Have the operator replace the slot's pod if its agent has not restarted within 20 seconds."""
        await asyncio.sleep(_OBEY_S)
        link = self._driver.links.get(node) if self._driver else None
        now = self._slots.on(node)
        if link is not None and link.incarnation != incarnation:
            return
        if now is not None and now.uid == slot.uid and now.restarts == slot.restarts:
            self._request_restart(slot.pod)

    def _request_restart(self, pod: str) -> None:
        term = self._driver.term if self._driver else 0
        self._restart.setdefault(pod, f"r-{term}-{len(self._restart) + 1}")
        self.changed()

    async def quarantine(self, node: str, incident: str) -> None:
        self._quarantine[node, incident] = {"node": node, "incident": incident, **self._about(incident)}
        self.changed()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._answer(node, incident)
        except TimeoutError as error:
            raise FleetRefusedError(f"the operator did not answer within {_ANSWER_S:g} s") from error
        finally:
            self._quarantine.pop((node, incident), None)
            self.changed()

    def _about(self, incident_id: str) -> dict[str, str]:
        """Return cause and reason of the incident, {} if it is no longer in the record."""
        record = self._core.record
        for incident in (*record.incidents, record.incident):
            if incident is not None and incident.id == incident_id:
                return {"cause": str(incident.cause), "reason": str(incident.reason)[:_REASON]}
        return {}

    async def _answer(self, node: str, incident: str) -> None:
        """Wait until the operator has quarantined the node; raises FleetRefusedError if it refuses."""
        while True:
            for refusal in self._answers.get("refusals") or ():
                about = (refusal.get("request"), refusal.get("node"), refusal.get("incident"))
                if about == ("quarantine", node, incident):
                    raise FleetRefusedError(str(refusal.get("reason", "")))
            granted = self._answers.get("quarantined") or ()
            if any((one.get("node"), one.get("incident")) == (node, incident) for one in granted):
                return
            self._answered.clear()
            await self._answered.wait()

    def take_answers(self, operator_status: Obj) -> None:
        """Take the current value of the TrainingJob's `status.operator`."""
        self._answers = operator_status
        self._answered.set()

    async def probe(self, node: str) -> Health:
        slot = self._slots.on(node)
        if slot is None:
            return Health(healthy=False, detail="its pod is gone")
        if not slot.node_ready:
            return Health(healthy=False, detail="its node is not ready")
        if slot.phase not in ("Running", "Pending"):
            return Health(healthy=False, detail=f"its pod is {slot.phase}")
        return Health(healthy=None, detail="its pod runs but its agent does not answer")

    def labels(self, node: str) -> dict[str, str]:
        """Return the topology labels of the node that are known."""
        slot = self._slots.on(node)
        named = zip(self._topology_keys, slot.domains if slot else (), strict=False)
        return {key: value for key, value in named if value}

    async def close(self) -> None:
        """Order all agents to end; the operator removes their pods when the status is final."""
        if self._driver is not None:
            for link in self._driver.links:
                link.send(shutdown_order(self._driver.term, "the job ended"))
