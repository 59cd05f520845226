"""Helpers for one TrainingJob: its state, its pods, and waiting for conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rest import Refused, Rest

Json = dict[str, Any]
_API = "/apis/megascale.io/v1alpha1"


@dataclass(frozen=True)
class Job:
    """One TrainingJob. `patience_s`: default timeout of waits in seconds."""

    api: Rest
    namespace: str
    name: str
    patience_s: float

    @property
    def path(self) -> str:
        return f"{_API}/namespaces/{self.namespace}/trainingjobs/{self.name}"

    def get(self) -> Json:
        """Return the job, {} if it does not exist."""
        try:
            return self.api.get(self.path)
        except Refused as refused:
            if refused.code == 404:
                return {}
            raise

    def pods(self, role: str = "") -> list[Json]:
        """Return the job's pods, or those of one role (driver, slot), sorted by name."""
        selector = f"megascale.io/job={self.name}" + (f",megascale.io/role={role}" if role else "")
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        items: list[Json] = self.api.get(path, labelSelector=selector)["items"]
        return sorted(items, key=lambda one: str(one["metadata"]["name"]))

    def until(self, holds: Callable[[Json], Any], what: str, timeout_s: float = 0.0) -> Json:
        """Watch the job; return its first state for which `holds`; {} stands for a deleted job."""
        end = time.monotonic() + (timeout_s or self.patience_s)
        latest: Json = {}
        while time.monotonic() < end:
            listed = self.api.get(self.path.rsplit("/", 1)[0], fieldSelector=f"metadata.name={self.name}")
            latest = listed["items"][0] if listed["items"] else {}
            if holds(latest):
                return latest
            found = self._watch(listed["metadata"]["resourceVersion"], holds, end)
            if found is not None:
                return found
        raise AssertionError(f"{self.name}: never {what}; status {latest.get('status')}")

    def _watch(self, version: str, holds: Callable[[Json], Any], end: float) -> Json | None:
        left = max(1, int(end - time.monotonic()))
        query = {"fieldSelector": f"metadata.name={self.name}", "timeoutSeconds": min(left, 15)}
        with self.api.watch(self.path.rsplit("/", 1)[0], resourceVersion=version, **query) as events:
            for event in events:
                if event["type"] == "ERROR":
                    return None
                latest = {} if event["type"] == "DELETED" else event["object"]
                if holds(latest):
                    return dict(latest)
        return None

    def until_state(self, state: str, timeout_s: float = 0.0) -> Json:
        return self.until(lambda job: job.get("status", {}).get("state") == state, state, timeout_s)

    def until_step(self, step: int, timeout_s: float = 0.0) -> Json:
        return self.until(lambda job: driver(job).get("step", 0) >= step, f"at step {step}", timeout_s)

    def condition(self, kind: str) -> str:
        """Return the status of a condition, "" if it is not set."""
        conditions = self.get().get("status", {}).get("conditions", ())
        return next((str(one["status"]) for one in conditions if one["type"] == kind), "")

    def patch(self, body: Json) -> Json:
        return self.api.merge(self.path, body)

    def delete(self) -> None:
        self.api.delete(self.path)


def driver(job: Json) -> Json:
    """Return `status.driver` of a job."""
    found: Json = job.get("status", {}).get("driver") or {}
    return found
