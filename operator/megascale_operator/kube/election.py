"""Leader election by a Lease, and the fence that every write passes.

The leader may write until `renew_deadline_s` after it *sent* its last successful renewal; others take over
when the Lease did not change for `lease_s` of their own clock. With renew_deadline_s < lease_s the two never
overlap, whatever the API server or the network does, and however long a process was stopped.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from megascale.errors import MegascaleError
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock, micro_stamp
from megascale_operator.kube.errors import ApiError, ConflictError, NotFoundError, NotLeaderError
from megascale_operator.kube.resources import LEASES, Obj

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A request is bounded by `request_s`, so two renewals may fail before the deadline."""

    lease_s: int = 10
    renew_deadline_s: float = 7.0
    renew_s: float = 2.0
    poll_s: float = 1.0
    request_s: float = 3.0

    def __post_init__(self) -> None:
        if not self.renew_s + self.request_s <= self.renew_deadline_s < self.lease_s:
            raise ValueError(
                f"expected renew_s + request_s <= renew_deadline_s < lease_s, got {self}; otherwise one slow "
                "renewal ends leadership, or two leaders may write"
            )


class Fence:
    """Until when this process may write. Closed at first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deadline = float("-inf")

    def open_until(self, deadline: float) -> None:
        self._deadline = deadline

    def close(self) -> None:
        self._deadline = float("-inf")

    @property
    def remaining_s(self) -> float:
        return self._deadline - self._clock.monotonic()

    def guard(self) -> float:
        """Seconds that a write may take.

        Raises:
            NotLeaderError: none at all.
        """
        remaining_s = self.remaining_s
        if remaining_s <= 0:
            raise NotLeaderError("held back a write: the Lease is not held any more")
        return remaining_s


class Election:
    """One candidate. `api` must have no retries of its own and a timeout of `timing.request_s`.

    Attributes:
        leading: set while this process leads.
        fence: what its writes must pass.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        timing: Timing | None = None,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._clock, self._timing = clock, timing or Timing()
        self.fence = Fence(clock)
        self.leading = asyncio.Event()
        self.resigned = asyncio.Event()
        self.resigned.set()
        self._lease: Obj | None = None
        self._seen: tuple[Any, ...] = ()
        self._seen_at = clock.monotonic()

    async def run(self) -> None:
        """Stand for election until cancelled; does not release the Lease."""
        while True:
            if self.leading.is_set():
                await self._renew_or_resign()
            elif await self._try(self._acquire):
                log.info("%s leads now", self._identity)
                self.resigned.clear()
                self.leading.set()
            else:
                await asyncio.sleep(self._timing.poll_s)

    async def release(self) -> None:
        """Stop writing, then let somebody else lead at once."""
        was_leading = self.leading.is_set()
        self._resign()
        if was_leading and self._lease is not None:
            spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._try(lambda: self._write(spec))

    async def _renew_or_resign(self) -> None:
        remaining_s = self.fence.remaining_s
        if remaining_s <= 0:
            log.warning("%s could not renew its Lease in time and leads no more", self._identity)
            self._resign()
            return
        await asyncio.sleep(min(self._timing.renew_s, remaining_s))
        for _ in range(2):
            if self.fence.remaining_s <= 0 or await self._try(self._renew):
                return
        await asyncio.sleep(min(self._timing.poll_s, max(0.0, self.fence.remaining_s)))

    def _resign(self) -> None:
        self.fence.close()
        self.leading.clear()
        self.resigned.set()

    async def _try(self, request: Any) -> bool:  # noqa: ANN401
        """Whether the request was granted within its time."""
        try:
            async with asyncio.timeout(self._timing.request_s):
                return bool(await request())
        except TimeoutError:
            log.warning("Lease %s: no answer within %g s", self._name, self._timing.request_s)
        except ConflictError:
            self._lease = None
        except (ApiError, MegascaleError) as error:
            log.warning("Lease %s: %s", self._name, error)
        return False

    async def _acquire(self) -> bool:
        """Take the Lease if it is free."""
        started = self._clock.monotonic()
        try:
            lease = await self._api.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            return await self._create(started)
        spec = lease.get("spec") or {}
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), lease["metadata"]["resourceVersion"])
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock.monotonic()
        holder = spec.get("holderIdentity") or ""
        patience_s = float(spec.get("leaseDurationSeconds") or self._timing.lease_s)
        if holder not in ("", self._identity) and self._clock.monotonic() - self._seen_at <= patience_s:
            return False
        now = micro_stamp(self._clock.utc())
        self._lease = lease
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
        started = self._clock.monotonic()
        await self._write(self._spec(now, now, transitions))
        self.fence.open_until(started + self._timing.renew_deadline_s)
        return True

    async def _create(self, started: float) -> bool:
        now = micro_stamp(self._clock.utc())
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(now, now, 0),
        }
        self._lease = await self._api.create(LEASES, body, self._namespace)
        self.fence.open_until(started + self._timing.renew_deadline_s)
        return True

    async def _renew(self) -> bool:
        started = self._clock.monotonic()
        if self._lease is None:
            # A renewal went astray: its effect is not known, only that the Lease is still ours will do.
            lease = await self._api.get(LEASES, self._name, self._namespace)
            if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
                log.warning("the Lease belongs to %s now", (lease.get("spec") or {}).get("holderIdentity"))
                self.fence.close()
                return False
            self._lease = lease
        spec = self._lease["spec"] | {"renewTime": micro_stamp(self._clock.utc())}
        await self._write(spec)
        self.fence.open_until(started + self._timing.renew_deadline_s)
        return True

    async def _write(self, spec: Obj) -> bool:
        if self._lease is None:
            raise AssertionError("the Lease is read before it is written")
        body, self._lease = self._lease | {"spec": spec}, None
        self._lease = await self._api.replace(LEASES, body, self._namespace)
        return True

    def _spec(self, acquired: str, renewed: str, transitions: int) -> Obj:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timing.lease_s,
            "acquireTime": acquired,
            "renewTime": renewed,
            "leaseTransitions": transitions,
        }
