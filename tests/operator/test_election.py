"""Leader election against a server that fails or hangs, in virtual time: at most one process may write."""

from __future__ import annotations

import asyncio
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.election import Election, Timing
from megascale_operator.kube.errors import (
    AlreadyExistsError,
    ApiUnreachableError,
    ConflictError,
    NotFoundError,
    NotLeaderError,
)
from megascale_operator.kube.resources import Obj, Resource
from virtual_time import VirtualLoop, run_virtual

TIMING = Timing()


class Leases:
    """A server with one Lease; per client, requests can be made to fail or hang."""

    def __init__(self) -> None:
        self.lease: Obj | None = None
        self.version = 0

    def client(self) -> Client:
        return Client(self)


class Client:
    def __init__(self, server: Leases) -> None:
        self.server = server
        self.mode = "ok"

    async def _answer(self) -> None:
        if self.mode == "hang":
            await asyncio.sleep(3600)
        if self.mode == "refuse":
            raise ApiUnreachableError("refused")
        await asyncio.sleep(0.01)

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Obj:  # noqa: ARG002
        await self._answer()
        if self.server.lease is None:
            raise NotFoundError("no Lease", 404)
        return copy.deepcopy(self.server.lease)

    async def create(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:  # noqa: ARG002
        await self._answer()
        if self.server.lease is not None:
            raise AlreadyExistsError("exists", 409)
        return self._store(body)

    async def replace(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:  # noqa: ARG002
        await self._answer()
        if self.server.lease is None:
            raise NotFoundError("no Lease", 404)
        if body["metadata"]["resourceVersion"] != self.server.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed", 409)
        return self._store(body)

    def _store(self, body: Obj) -> Obj:
        self.server.version += 1
        stored = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = str(self.server.version)
        self.server.lease = stored
        return copy.deepcopy(stored)


def candidate(loop: VirtualLoop, client: Client, name: str) -> Election:
    clock = Clock(loop.time, lambda: 1_700_000_000 + loop.time())
    return Election(client, "megascale-system", "megascale-operator", name, clock, TIMING)  # type: ignore[arg-type]


def may_write(election: Election) -> bool:
    try:
        election.fence.guard()
    except NotLeaderError:
        return False
    return True


def test_the_first_creates_the_lease_and_the_second_waits() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        one, two = candidate(loop, server.client(), "one"), candidate(loop, server.client(), "two")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(one.run())
            await one.leading.wait()
            second = group.create_task(two.run())
            await asyncio.sleep(300)
            assert may_write(one)
            assert not may_write(two)
            assert server.lease is not None
            assert server.lease["spec"]["holderIdentity"] == "one"
            assert server.lease["spec"]["leaseTransitions"] == 0
            assert server.lease["spec"]["renewTime"].endswith("Z")
            first.cancel()
            second.cancel()

    run_virtual(main)


def test_a_killed_leader_is_followed_within_fifteen_seconds() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        one, two = candidate(loop, server.client(), "one"), candidate(loop, server.client(), "two")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(one.run())
            second = group.create_task(two.run())
            await one.leading.wait()
            await asyncio.sleep(30)
            first.cancel()
            killed = loop.time()
            await two.leading.wait()
            assert 3 < loop.time() - killed <= 12
            assert server.lease is not None
            assert server.lease["spec"]["leaseTransitions"] == 1
            second.cancel()

    run_virtual(main)


def test_a_released_lease_is_taken_within_two_seconds() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        one, two = candidate(loop, server.client(), "one"), candidate(loop, server.client(), "two")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(one.run())
            second = group.create_task(two.run())
            await one.leading.wait()
            await asyncio.sleep(30)
            first.cancel()
            await one.release()
            assert not may_write(one)
            released = loop.time()
            await two.leading.wait()
            assert loop.time() - released <= 2
            second.cancel()

    run_virtual(main)


@pytest.mark.parametrize("mode", ["hang", "refuse"])
def test_writes_stop_at_the_renew_deadline_when_the_server_is_unreachable(mode: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        client = server.client()
        one = candidate(loop, client, "one")
        running = asyncio.create_task(one.run())
        await one.leading.wait()
        await asyncio.sleep(30)
        client.mode = mode
        away = loop.time()
        await one.resigned.wait()
        assert loop.time() - away <= TIMING.renew_deadline_s + 0.1
        assert not may_write(one)
        client.mode = "ok"
        await one.leading.wait()
        assert may_write(one)
        running.cancel()

    run_virtual(main)


def test_one_slow_renewal_does_not_end_leadership() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        client = server.client()
        one = candidate(loop, client, "one")
        running = asyncio.create_task(one.run())
        await one.leading.wait()
        for _ in range(5):
            client.mode = "hang"
            await asyncio.sleep(2.9)
            client.mode = "ok"
            await asyncio.sleep(5)
            assert one.leading.is_set()
        running.cancel()

    run_virtual(main)


def test_a_paused_leader_may_not_write_when_it_resumes() -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        one, two = candidate(loop, server.client(), "one"), candidate(loop, server.client(), "two")
        first = asyncio.create_task(one.run())
        await one.leading.wait()
        loop.skip(TIMING.renew_deadline_s)
        assert not may_write(one), "the first check after SIGCONT already refuses"
        second = asyncio.create_task(two.run())
        await asyncio.sleep(60)
        assert not (may_write(one) and may_write(two))
        first.cancel()
        second.cancel()

    run_virtual(main)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["one", "two"]), st.sampled_from(["ok", "hang", "refuse"]), st.floats(0.1, 15)
        ),
        max_size=25,
    )
)
def test_at_most_one_process_may_write_under_any_server_faults(script: list[tuple[str, str, float]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        server = Leases()
        clients = {"one": server.client(), "two": server.client()}
        elections = {name: candidate(loop, client, name) for name, client in clients.items()}
        tasks = [asyncio.create_task(election.run()) for election in elections.values()]
        for name, mode, seconds in script:
            clients[name].mode = mode
            end = loop.time() + seconds
            while loop.time() < end:
                await asyncio.sleep(0.25)
                assert sum(may_write(election) for election in elections.values()) <= 1
        for client in clients.values():
            client.mode = "ok"
        await asyncio.sleep(TIMING.lease_s + 3)
        assert sum(may_write(election) for election in elections.values()) == 1, "a replica leads again"
        for task in tasks:
            task.cancel()

    run_virtual(main)


def test_timings_that_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="renew_deadline_s < lease_s"):
        Timing(lease_s=5, renew_deadline_s=7)
