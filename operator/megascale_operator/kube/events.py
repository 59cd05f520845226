"""Events on objects: one per transition, repeated ones counted, never in the way of anything else."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from megascale.errors import MegascaleError
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock, stamp
from megascale_operator.kube.errors import NotFoundError
from megascale_operator.kube.resources import EVENTS, Obj, name_of, namespace_of

log = logging.getLogger(__name__)

_KEPT: Final = 1024
_SAME_FOR_S: Final = 600.0
_MESSAGE: Final = 1024
_OF_THE_CLUSTER: Final = "default"
"""Where the API server takes Events on objects without a namespace; it refuses them elsewhere."""


@dataclass(slots=True)
class _Reported:
    name: str
    count: int
    at: float


class EventRecorder:
    """Best effort: an Event that cannot be written is logged and forgotten."""

    def __init__(self, api: KubeApi, component: str, host: str, clock: Clock) -> None:
        self._api, self._component, self._host, self._clock = api, component, host, clock
        self._reported: OrderedDict[tuple[str, str, str], _Reported] = OrderedDict()

    async def record(self, obj: Obj, kind: str, reason: str, message: str) -> None:
        """An Event of type `kind` (Normal, Warning) on `obj`; a repeated one is counted up."""
        message, now = message[:_MESSAGE], self._clock.utc()
        namespace = namespace_of(obj) or _OF_THE_CLUSTER
        key = (str(obj["metadata"].get("uid", "")), reason, message)
        reported = self._reported.get(key)
        try:
            if reported and now - reported.at < _SAME_FOR_S:
                reported.count += 1
                await self._api.patch(
                    EVENTS, reported.name, {"count": reported.count, "lastTimestamp": stamp(now)}, namespace
                )
            else:
                reported = _Reported(self._name(obj, key, now), 1, now)
                await self._api.create(
                    EVENTS, self._body(obj, reported.name, kind, reason, message, now), namespace
                )
        except NotFoundError:
            self._reported.pop(key, None)
            return
        except MegascaleError as error:
            log.info("event %s on %s: %s", reason, name_of(obj), error)
            return
        reported.at = now
        self._reported[key] = reported
        self._reported.move_to_end(key)
        if len(self._reported) > _KEPT:
            self._reported.popitem(last=False)

    @staticmethod
    def _name(obj: Obj, key: tuple[str, str, str], now: float) -> str:
        digest = hashlib.sha256(repr((key, now)).encode()).hexdigest()[:16]
        return f"{name_of(obj)}.{digest}"

    def _body(self, obj: Obj, name: str, kind: str, reason: str, message: str, now: float) -> Obj:
        meta = obj["metadata"]
        namespace = namespace_of(obj)
        involved = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": meta["name"],
            "uid": meta.get("uid", ""),
            "resourceVersion": str(meta.get("resourceVersion", "")),
        }
        if namespace:
            involved["namespace"] = namespace
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace or _OF_THE_CLUSTER},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }
