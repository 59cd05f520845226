"""Pods of a job that do not run, and why: as the scheduler, the kubelet or the newest warning says."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import chain
from typing import Final

from megascale_operator.kube.errors import ApiError
from megascale_operator.kube.resources import EVENTS, PODS, Obj
from megascale_operator.plugin.access import Access
from megascale_operator.reconcile import names

_CAUSES: Final = 3
_NAMES: Final = 3
_TEXT: Final = 300
_STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


async def pending(access: Access, job: str) -> list[str]:
    """A sentence for each cause, that of most pods first; [] when no pod waits."""
    page = await access.api.list_page(
        PODS, access.namespace, selector=names.pods_selector(job), field="status.phase=Pending"
    )
    causes: dict[str, list[str]] = defaultdict(list)
    for pod in page.items:
        causes[_cause(pod)].append(pod["metadata"]["name"])
    if starting := causes.pop("", []):
        causes[await _warning(access, starting[0]) or "starting"] += starting
    most_first = sorted(causes.items(), key=lambda cause: -len(cause[1]))
    return [_sentence(cause, pods) for cause, pods in most_first[:_CAUSES]]


def _cause(pod: Obj) -> str:
    """Why it waits; "" = it is being started, as far as the pod tells."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _message(condition)
    containers = chain(status.get("initContainerStatuses") or (), status.get("containerStatuses") or ())
    waits = [(one.get("state") or {}).get("waiting") or {} for one in containers]
    return next((_message(wait) for wait in waits if wait.get("reason", "") not in _STARTING), "")


async def _warning(access: Access, pod: str) -> str:
    """The newest warning about a pod, "" if there is none or the user may not read events."""
    field = f"involvedObject.name={pod},type=Warning"
    with contextlib.suppress(ApiError):
        events = (await access.api.list_page(EVENTS, access.namespace, field=field)).items
        if events:
            return _message(max(events, key=_reported_at))
    return ""


def _reported_at(event: Obj) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _message(stated: Obj) -> str:
    text = ": ".join(filter(None, (stated.get("reason"), stated.get("message"))))
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def _sentence(cause: str, pods: list[str]) -> str:
    shown = ", ".join(sorted(pods)[:_NAMES]) + (
        f" and {len(pods) - _NAMES} more" if len(pods) > _NAMES else ""
    )
    return f"{len(pods)} {'pod waits' if len(pods) == 1 else 'pods wait'}, {cause} ({shown})"
