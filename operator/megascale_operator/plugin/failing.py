"""The log of the rank that failed first in the last incident, from its pod or the driver's job record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megascale.errors import InputError
from megascale_operator.kube.errors import ApiError
from megascale_operator.kube.resources import PODS
from megascale_operator.plugin.access import Access
from megascale_operator.plugin.job_view import load_job_view
from megascale_operator.reconcile import names


@dataclass(frozen=True, slots=True)
class FailingRank:
    """The rank that failed first, and its last log lines.

    Attributes:
        rank: None if the incident has no rank.
        source: pod that the lines are from, or "record" for the evidence in the driver's job record.
        text: log lines.
        stored: URI of the whole log.
    """

    incident: str
    reason: str
    rank: int | None
    node: str
    attempt: int
    source: str
    text: tuple[str, ...]
    stored: str

    def document(self) -> dict[str, Any]:
        """Return the fields as a JSON value."""
        return {name: getattr(self, name) for name in self.__slots__}

    def lines(self) -> list[str]:
        """Return the lines to print."""
        who = f"rank {self.rank} on {self.node}" if self.rank is not None else self.node or "the job"
        head = f"{self.incident}: {self.reason} ({who}, attempt {self.attempt}; from {self.source})"
        return [head, *(f"  {line}" for line in self.text), f"whole log: {self.stored}"]


async def first_failing(access: Access, name: str, count: int) -> FailingRank:
    """Return the rank that failed first in the last incident.

    Args:
        count: lines to read from the pod's log.

    Raises:
        InputError: the job has no incident.
    """
    view = await load_job_view(access, name)
    incidents = view.incidents()
    if not incidents:
        raise InputError(f"{view.name} has no incidents")
    last = next((one for one in reversed(incidents) if one.rank is not None), incidents[-1])
    source, text = "record", tuple(last.evidence)
    pod = await _pod_on(access, view.name, last.node) if last.node else ""
    if pod:
        try:
            log = (await access.pod_log(pod, count)).splitlines()
        except ApiError:
            log = []
        of_rank = tuple(line for line in log if last.rank is None or line.startswith(f"[rank {last.rank}]"))
        source, text = (f"pod {pod}", of_rank) if of_rank else (source, text)
    uri = view.checkpoint_uri or "the pod's /run/megascale/work/checkpoints"
    stored = f"{uri}/logs/attempt-{last.attempt}/rank-{last.rank if last.rank is not None else '*'}.log"
    return FailingRank(last.id, last.reason, last.rank, last.node or "", last.attempt, source, text, stored)


async def _pod_on(access: Access, job: str, node: str) -> str:
    """Return the newest slot pod of the job on the node, "" if there is none."""
    page = await access.api.list_page(PODS, access.namespace, selector=names.pods_selector(job, "slot"))
    pods = [pod["metadata"]["name"] for pod in page.items if pod["spec"].get("nodeName") == node]
    return max(pods, key=names.incarnation_of, default="")
