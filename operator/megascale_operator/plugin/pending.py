"""Pending pods of a job and the causes, from pod conditions, container statuses and warning Events."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import chain
from typing import Final

from megascale_operator.kube.errors import ApiError
from megascale_operator.kube.resources import EVENTS, PODS, Obj
from megascale_operator.plugin.access import Access
from megascale_operator.reconcile import names

_MAX_CAUSES: Final = 3
_MAX_NAMES: Final = 3
_MAX_TEXT: Final = 300
_STARTING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


async def pending_pods(access: Access, job: str) -> list[str]:
    """Return a sentence for each cause, the one with the most pods first; [] if no pod is pending."""
    page = await access.api.list_page(
        PODS, access.namespace, selector=names.pods_selector(job), field="status.phase=Pending"
    )
    causes: dict[str, list[str]] = defaultdict(list)
    for pod in page.items:
        causes[_cause(pod)].append(pod["metadata"]["name"])
    if starting := causes.pop("", []):
        causes[await _warning(access, starting[0]) or "starting"] += starting
    most_first = sorted(causes.items(), key=lambda cause: -len(cause[1]))
    return [_sentence(cause, pods) for cause, pods in most_first[:_MAX_CAUSES]]


def _cause(pod: Obj) -> str:
    """Return why the pod is pending, "" if its status shows only that it is starting."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _message(condition)
    containers = chain(status.get("initContainerStatuses") or (), status.get("containerStatuses") or ())
    waits = [(one.get("state") or {}).get("waiting") or {} for one in containers]
    return next((_message(wait) for wait in waits if wait.get("reason", "") not in _STARTING), "")


async def _warning(access: Access, pod: str) -> str:
    """Return the newest warning Event of a pod, "" if there is none or the user may not read Events."""
    field = f"involvedObject.name={pod},type=Warning"
    with contextlib.suppress(ApiError):
        events = (await access.api.list_page(EVENTS, access.namespace, field=field)).items
        if events:
            return _message(max(events, key=_reported_at))
    return ""


def _reported_at(event: Obj) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _message(source: Obj) -> str:
    text = ": ".join(filter(None, (source.get("reason"), source.get("message"))))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def _sentence(cause: str, pods: list[str]) -> str:
    shown = ", ".join(sorted(pods)[:_MAX_NAMES]) + (
        f" and {len(pods) - _MAX_NAMES} more" if len(pods) > _MAX_NAMES else ""
    )
    return f"{len(pods)} {'pod waits' if len(pods) == 1 else 'pods wait'}, {cause} ({shown})"
