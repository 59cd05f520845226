"""What the first failing rank of the last incident wrote: from its pod's log, else from the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megascale.errors import InputError
from megascale_operator.kube.errors import ApiError
from megascale_operator.kube.resources import PODS
from megascale_operator.plugin.access import Access
from megascale_operator.plugin.knowledge import known
from megascale_operator.reconcile import names


@dataclass(frozen=True, slots=True)
class FailingRank:
    """A rank, where it ran, and its last words.

    Attributes:
        source: the pod whose log the lines are from, or "record".
        stored: where the whole log is kept.
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
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def lines(self) -> list[str]:
        """For people."""
        who = f"rank {self.rank} on {self.node}" if self.rank is not None else self.node or "the job"
        head = f"{self.incident}: {self.reason} ({who}, attempt {self.attempt}; from {self.source})"
        return [head, *(f"  {line}" for line in self.text), f"whole log: {self.stored}"]


async def first_failing(access: Access, name: str, count: int) -> FailingRank:
    """Raises: InputError: nothing has failed so far."""
    found = await known(access, name)
    incidents = found.incidents()
    if not incidents:
        raise InputError(f"{found.name} has no incident so far")
    last = next((one for one in reversed(incidents) if one.rank is not None), incidents[-1])
    source, text = "record", tuple(last.evidence)
    pod = await _pod_on(access, found.name, last.node) if last.node else ""
    if pod:
        try:
            reported = (await access.pod_log(pod, count)).splitlines()
        except ApiError:
            reported = []
        mine = tuple(line for line in reported if last.rank is None or line.startswith(f"[rank {last.rank}]"))
        source, text = (f"pod {pod}", mine) if mine else (source, text)
    uri = (found.job["spec"].get("checkpoint") or {}).get("uri") or "the run's checkpoints"
    stored = f"{uri}/logs/attempt-{last.attempt}/rank-{last.rank if last.rank is not None else '*'}.log"
    return FailingRank(last.id, last.reason, last.rank, last.node or "", last.attempt, source, text, stored)


async def _pod_on(access: Access, job: str, node: str) -> str:
    """The newest slot pod of the job on the node, "" if there is none."""
    page = await access.api.list_page(PODS, access.namespace, selector=names.pods_selector(job, "slot"))
    pods = [pod["metadata"]["name"] for pod in page.items if pod["spec"].get("nodeName") == node]
    return max(pods, key=names.incarnation_of, default="")
