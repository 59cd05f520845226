"""Records Events on objects. Repeated Events are aggregated; a failed write is logged and ignored."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from megascale.errors import MegascaleError
from megascale.observe.text import one_line
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock, stamp
from megascale_operator.kube.errors import NotFoundError
from megascale_operator.kube.resources import EVENTS, Obj, name_of, namespace_of

log = logging.getLogger(__name__)

_MAX_RECORDED: Final = 1024
_AGGREGATION_S: Final = 600.0
_MAX_MESSAGE: Final = 1024
_CLUSTER_SCOPED_NAMESPACE: Final = "default"
"""The API server accepts Events on cluster-scoped objects only in this namespace."""


@dataclass(slots=True)
class _Recorded:
    name: str
    count: int
    last_at: float


class EventRecorder:
    """Creates Events, best effort: an Event that cannot be written is logged and dropped."""

    def __init__(self, api: KubeApi, component: str, host: str, clock: Clock) -> None:
        self._api, self._component, self._host, self._clock = api, component, host, clock
        self._recorded: OrderedDict[tuple[str, str, str], _Recorded] = OrderedDict()

    async def record(self, obj: Obj, kind: str, reason: str, message: str) -> None:
        """Record an Event on `obj`.

        The same Event within 10 minutes increments the `count` of the first instead of creating another.

        Args:
            kind: the Event's type, Normal or Warning.
        """
        message, now = one_line(message, _MAX_MESSAGE), self._clock.utc()
        namespace = namespace_of(obj) or _CLUSTER_SCOPED_NAMESPACE
        key = (str(obj["metadata"].get("uid", "")), reason, message)
        recorded = self._recorded.get(key)
        try:
            if recorded and now - recorded.last_at < _AGGREGATION_S:
                recorded.count += 1
                await self._api.patch(
                    EVENTS, recorded.name, {"count": recorded.count, "lastTimestamp": stamp(now)}, namespace
                )
            else:
                recorded = _Recorded(self._name(obj, key, now), 1, now)
                await self._api.create(
                    EVENTS, self._body(obj, recorded.name, kind, reason, message, now), namespace
                )
        except NotFoundError:
            self._recorded.pop(key, None)
            return
        except MegascaleError as error:
            log.info("Event %s on %s was not recorded: %s", reason, name_of(obj), error)
            return
        recorded.last_at = now
        self._recorded[key] = recorded
        self._recorded.move_to_end(key)
        if len(self._recorded) > _MAX_RECORDED:
            self._recorded.popitem(last=False)

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
            "metadata": {"name": name, "namespace": namespace or _CLUSTER_SCOPED_NAMESPACE},
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
