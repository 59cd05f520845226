"""Writes `status.driver` of the TrainingJob: fields for display and the driver's requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import Any, Final

from megascale.core.api import Incident, JobState, Milestone
from megascale.driver.api import RunningDriver, incidents_of
from megascale_operator.driver.fleet import KubernetesFleet
from megascale_operator.driver.record import check_term
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import stamp
from megascale_operator.kube.errors import ApiError, ApiUnreachableError
from megascale_operator.kube.resources import CONFIG_MAPS, TRAINING_JOBS, Obj
from megascale_operator.reconcile import names

log = logging.getLogger(__name__)

MANAGER: Final = "megascale-driver"
_PERIOD_S: Final = 15.0
_ALIVE_S: Final = 45.0
"""Seconds after which an unchanged status is written again: after 90 s without a write the operator
considers the driver silent."""
_APART_S: Final = 0.5
_RETRY_S: Final = 0.5
_RETRY_LIMIT_S: Final = 10.0
_FINAL_S: Final = 300.0
_LINE: Final = 500
_KEPT: Final = 5
_URGENT: Final = (
    "observedGeneration",
    "jobState",
    "state",
    "attempt",
    "restarts",
    "lastFault",
    "incident",
    "requests",
    "lastCommand",
)
"""Fields whose changes are written immediately; other changes are written at most every 15 s."""


class StatusWriter:
    """A background service that writes the status by server-side apply when it has changed.

    Attributes:
        generation: `metadata.generation` of the spec that the driver uses.
        last_command: the answer to the last command of a user, None before any.
    """

    def __init__(self, api: KubeApi, namespace: str, job: str, pod: str, fleet: KubernetesFleet) -> None:
        self._api, self._namespace, self._job, self._pod, self._fleet = api, namespace, job, pod, fleet
        self.generation = 0
        self.last_command: Obj | None = None
        self._written: Obj = {}
        self._written_at = self._told_at = float("-inf")

    async def run(self, driver: RunningDriver) -> None:
        """Write changes until cancelled; failed writes are retried with backoff."""
        self._fleet.changed = driver.changed.set
        tries = 0
        while True:
            wait_s = self._next_write_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await driver.changed.wait()
            driver.changed.clear()
            tries = 0 if await self._write_if_due(driver) else tries + 1
            pause_s = min(_RETRY_LIMIT_S, _RETRY_S * 2 ** min(tries, 6)) if tries else _APART_S
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.0))
            if tries:
                driver.changed.set()

    def _next_write_s(self) -> float:
        return max(0.05, self._written_at + _PERIOD_S - time.monotonic())

    async def _write_if_due(self, driver: RunningDriver) -> bool:
        """Write the status if a write is due; returns False only if a write failed."""
        status = self.status(driver)
        urgent = any(status.get(key) != self._written.get(key) for key in _URGENT)
        due = time.monotonic() >= self._written_at + _PERIOD_S
        if status == self._written and time.monotonic() < self._told_at + _ALIVE_S:
            self._written_at = time.monotonic()
            return True
        return await self._write(status) if urgent or due else True

    async def _write(self, status: Obj) -> bool:
        """Write the status; returns False if that failed.

        Raises:
            FencedError: another driver took over. Checked before each write, so that a driver that was
                suspended does not overwrite the other one's status.
        """
        body = {
            "metadata": {"name": self._job, "namespace": self._namespace},
            "status": {"driver": {**status, "updatedAt": stamp(time.time())}},
        }
        try:
            record = await self._api.get(CONFIG_MAPS, names.record_map(self._job), self._namespace)
            check_term(record, int(status["term"]))
            await self._api.apply(TRAINING_JOBS, body, self._namespace, manager=MANAGER, subresource="status")
        except (ApiError, ApiUnreachableError) as error:
            log.warning("the status of %s cannot be written: %s", self._job, error)
            return False
        self._written, self._written_at = status, time.monotonic()
        self._told_at = self._written_at
        return True

    async def finish(self, driver: RunningDriver) -> None:
        """Write the final status, which tells the operator that the job ended; retries for five minutes."""
        end = time.monotonic() + _FINAL_S
        tries = 0
        while not await self._write(self.status(driver)) and time.monotonic() < end:
            tries += 1
            await asyncio.sleep(min(_RETRY_LIMIT_S, _RETRY_S * 2 ** min(tries, 6)) * random.uniform(0.5, 1.0))

    def status(self, driver: RunningDriver) -> Obj:
        """Return the status without `updatedAt`; floats are formatted as strings."""
        core, record, live = driver.core, driver.core.record, driver.board.overview()
        ended = record.state is JobState.FINISHED
        incidents = incidents_of(core)
        last = incidents[-1] if incidents else None
        document: Obj = {
            "observedGeneration": self.generation,
            "jobState": str(record.state),
            "state": record.finish_state or str(record.state),
            "reason": _line(record.finish_reason if ended else (last.decision if last else "")),
            "term": record.term,
            "attempt": record.attempt,
            "step": live["step"],
            "steps": live["steps"],
            "loss": _number(live["loss"], 5),
            "mfu": _number(live["mfu"], 3),
            "goodput": _number(live["goodput"], 3),
            "restarts": live["restarts"],
            "checkpointStep": live["checkpointStep"],
            "lastFault": _line(last.reason) if last else None,
            "lastFaultNode": last.node or None if last else None,
            "incident": _open(record.incident),
            "incidents": [_closed(incident) for incident in record.incidents[-_KEPT:]],
            "alerts": [
                {"reason": _line(alert["message"]), "time": stamp(alert["time"])}
                for alert in live["alerts"][-_KEPT:]
            ],
            "requests": self._fleet.requests(),
            "lastCommand": self.last_command,
            "pod": self._pod,
        }
        return {key: value for key, value in document.items() if value is not None}


def _open(incident: Incident | None) -> Obj | None:
    if incident is None:
        return None
    found = {"id": incident.id, "reason": _line(incident.reason), "action": _line(incident.action or "")}
    return {key: value for key, value in found.items() if value}


def _closed(incident: Incident) -> Obj:
    stages = incident.milestones
    fault, ended = (
        stages[Milestone.FAULT].at,
        stages.get(Milestone.BACK_TO_SPEED) or stages.get(Milestone.FIRST_STEP),
    )
    found: dict[str, Any] = {
        "id": incident.id,
        "reason": _line(incident.reason),
        "action": _line(incident.action or ""),
        "node": incident.node,
        "rank": incident.rank,
        "time": stamp(stages[Milestone.DETECTED].at),
        "seconds": _number(ended.at - fault, 2) if ended else None,
    }
    return {key: value for key, value in found.items() if value not in ("", None)}


def _line(text: str) -> str:
    return text[:_LINE]


def _number(value: Any, digits: int) -> str | None:  # noqa: ANN401 - a float, or a string if it is not finite
    return f"{value:.{digits}f}" if isinstance(value, float) else None if value is None else str(value)
