"""Leader election by a Lease, and the fence that every write must pass.

The leader may write until `renew_deadline_s` after it *sent* its last successful renewal. Another candidate
takes over once the Lease has not changed for `lease_s` on that candidate's clock. Because renew_deadline_s <
lease_s, two processes can never write at the same time, even if the API server or the network fails or a
process is paused.
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
    """Durations in seconds.

    Attributes:
        lease_s: other candidates take over when the Lease has not changed for this long.
        renew_deadline_s: the leader stops writing this long after its last successful renewal was sent.
        renew_s: time between renewals.
        poll_s: time between a candidate's reads of the Lease.
        request_s: timeout of one request; one renewal may time out before the deadline.
    """

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
    """The deadline (monotonic seconds) until which this process may write; closed initially."""

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
        """Return the seconds that a write may take.

        Raises:
            NotLeaderError: this process may not write.
        """
        remaining_s = self.remaining_s
        if remaining_s <= 0:
            raise NotLeaderError("the write was not sent: this process does not hold the Lease")
        return remaining_s


class Election:
    """One candidate for a Lease. `api` must not retry and must have a timeout of `timing.request_s`.

    Attributes:
        leading: set while this process is the leader.
        resigned: set while it is not.
        fence: every write of this process must pass it.
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
        self._observed: tuple[Any, ...] = ()
        self._observed_at = clock.monotonic()

    async def run(self) -> None:
        """Acquire and renew the Lease until cancelled; does not release it."""
        while True:
            if self.leading.is_set():
                await self._renew_or_resign()
            elif await self._attempt(self._acquire):
                log.info("%s became the leader", self._identity)
                self.resigned.clear()
                self.leading.set()
            else:
                await asyncio.sleep(self._timing.poll_s)

    async def release(self) -> None:
        """Stop writing, then release the Lease so that another candidate can take it immediately."""
        was_leading = self.leading.is_set()
        self._resign()
        if was_leading and self._lease is not None:
            spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._attempt(lambda: self._write(spec))

    async def _renew_or_resign(self) -> None:
        remaining_s = self.fence.remaining_s
        if remaining_s <= 0:
            log.warning("%s did not renew its Lease in time and is no longer the leader", self._identity)
            self._resign()
            return
        await asyncio.sleep(min(self._timing.renew_s, remaining_s))
        for _ in range(2):
            if self.fence.remaining_s <= 0 or await self._attempt(self._renew):
                return
        await asyncio.sleep(min(self._timing.poll_s, max(0.0, self.fence.remaining_s)))

    def _resign(self) -> None:
        self.fence.close()
        self.leading.clear()
        self.resigned.set()

    async def _attempt(self, request: Any) -> bool:  # noqa: ANN401
        """Return whether the request succeeded within `request_s`."""
        try:
            async with asyncio.timeout(self._timing.request_s):
                return bool(await request())
        except TimeoutError:
            log.warning("Lease %s: no response within %g s", self._name, self._timing.request_s)
        except ConflictError:
            self._lease = None
        except (ApiError, MegascaleError) as error:
            log.warning("Lease %s: %s", self._name, error)
        return False

    async def _acquire(self) -> bool:
        """Take the Lease if it is free or expired."""
        started = self._clock.monotonic()
        try:
            lease = await self._api.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            return await self._create(started)
        spec = lease.get("spec") or {}
        observed = (spec.get("holderIdentity"), spec.get("renewTime"), lease["metadata"]["resourceVersion"])
        if observed != self._observed:
            self._observed, self._observed_at = observed, self._clock.monotonic()
        holder = spec.get("holderIdentity") or ""
        lease_duration_s = float(spec.get("leaseDurationSeconds") or self._timing.lease_s)
        if (
            holder not in ("", self._identity)
            and self._clock.monotonic() - self._observed_at <= lease_duration_s
        ):
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
            # The result of the last renewal is unknown: read the Lease again before renewing it.
            lease = await self._api.get(LEASES, self._name, self._namespace)
            if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
                log.warning("the Lease is now held by %s", (lease.get("spec") or {}).get("holderIdentity"))
                self.fence.close()
                return False
            self._lease = lease
        spec = self._lease["spec"] | {"renewTime": micro_stamp(self._clock.utc())}
        await self._write(spec)
        self.fence.open_until(started + self._timing.renew_deadline_s)
        return True

    async def _write(self, spec: Obj) -> bool:
        if self._lease is None:
            raise AssertionError("the Lease must be read before it is written")
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
