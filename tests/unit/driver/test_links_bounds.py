"""What a link to an agent holds, and who is told when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from megascale.driver import links as module
from megascale.driver.links import AgentLink, Links, NodeLostError, OrderFailedError
from megascale.rpc import megascale_pb2 as pb

LIMIT = 256


def order(number: int = 1) -> pb.DriverMessage:
    return pb.DriverMessage(term=1, command_id=f"e-{number}")


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10.0):
            await scenario()

    asyncio.run(main())


async def read(link: AgentLink) -> list[str]:
    """Ids of the messages that wait, up to the end of the link."""
    found = []
    while (message := await link.outgoing()) is not None:
        found.append(message.command_id)
    return found


def test_a_link_knows_its_agent_and_begins_heard_and_without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    link = AgentLink("n0", "a", "10.0.0.1", "q-0-0")
    assert (link.node, link.incarnation, link.address, link.pod) == ("n0", "a", "10.0.0.1", "q-0-0")
    assert AgentLink("n0", "a", "10.0.0.1").pod == ""
    assert (link.attempt, link.report) == (0, pb.Report())
    assert link.is_heard
    now = 105.9
    assert link.is_heard
    now = 106.0
    assert not link.is_heard


def test_an_agent_that_reads_nothing_loses_what_exceeds_the_bound_but_not_the_end() -> None:
    async def scenario() -> None:
        link = AgentLink("n0", "a", "address")
        for number in range(LIMIT + 5):
            link.send(order(number))
        link.close()
        assert await read(link) == [f"e-{number}" for number in range(1, LIMIT)]

    play(scenario)


def test_a_link_that_is_not_full_keeps_everything_when_it_ends() -> None:
    async def scenario() -> None:
        link = AgentLink("n0", "a", "address")
        for number in range(LIMIT - 1):
            link.send(order(number))
        link.close()
        assert await read(link) == [f"e-{number}" for number in range(LIMIT - 1)]

    play(scenario)


def test_a_second_answer_and_answers_that_nobody_waits_for_are_ignored() -> None:
    async def scenario() -> None:
        link = AgentLink("n0", "a", "address")
        waiting = asyncio.create_task(link.order(order()))
        await asyncio.sleep(0)
        link.answered(pb.CommandResult(command_id="e-9", ok=True))
        link.answered(pb.CommandResult(command_id="e-1", ok=True, store_port=5))
        link.answered(pb.CommandResult(command_id="e-1", ok=False))
        link.close()  # an order that was answered does not fail
        assert (await waiting).store_port == 5
        link.answered(pb.CommandResult(command_id="e-1", ok=False))
        assert link._waiting == {}

    play(scenario)


def test_a_refusal_names_its_node_and_the_reason() -> None:
    async def scenario() -> None:
        link = AgentLink("n0", "a", "address")
        waiting = asyncio.create_task(link.order(order()))
        await asyncio.sleep(0)
        link.answered(pb.CommandResult(command_id="e-1", ok=False, reason="the zygote died"))
        with pytest.raises(OrderFailedError) as caught:
            await waiting
        assert (str(caught.value), caught.value.nodes) == ("n0: the zygote died", ("n0",))

    play(scenario)


def test_every_order_of_a_link_that_ends_fails() -> None:
    async def scenario() -> None:
        link = AgentLink("n0", "a", "address")
        waiting = [asyncio.create_task(link.order(order(number))) for number in range(3)]
        await asyncio.sleep(0)
        link.close()
        for task in waiting:
            with pytest.raises(NodeLostError, match=r"^n0 is gone$"):
                await task
        assert link._waiting == {}

    play(scenario)


def test_everybody_who_waits_for_a_node_gets_its_link_when_it_comes() -> None:
    async def scenario() -> None:
        links = Links()
        waiting = [asyncio.create_task(links.wait_for("n0")) for _ in range(3)]
        other = asyncio.create_task(links.wait_for("n1"))
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        link = AgentLink("n0", "a", "address")
        links.attach(link)
        assert [await task for task in waiting[1:]] == [link, link]
        assert not other.done()
        links.lost("n1")
        with pytest.raises(NodeLostError, match=r"^n1 is gone$"):
            await other
        assert links._waiters == {}

    play(scenario)


def test_a_node_that_was_lost_is_lost_at_once_until_it_comes_back() -> None:
    async def scenario() -> None:
        links = Links()
        links.lost("n0")
        with pytest.raises(NodeLostError):
            await links.wait_for("n0")
        link = AgentLink("n0", "b", "address")
        links.attach(link)
        assert await links.wait_for("n0") is link
        assert list(links) == [link]
        links.lost("n0")
        assert links.get("n0") is None
        assert list(links) == []
        assert await read(link) == []

    play(scenario)


def test_a_stream_that_ended_leaves_the_node_to_come_back() -> None:
    async def scenario() -> None:
        links = Links()
        link = AgentLink("n0", "a", "address")
        links.attach(link)
        links.detach(link)
        assert links.get("n0") is None
        waiting = asyncio.create_task(links.wait_for("n0"))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        assert await read(link) == []

    play(scenario)


def test_a_wait_that_ended_late_begins_again() -> None:
    """The process was stopped while the answer was on its way."""

    async def scenario() -> None:
        links, link = Links(), AgentLink("n0", "a", "address")
        links.attach(link)
        asking = asyncio.create_task(links.order("n0", order(), 0.2))
        await asyncio.sleep(0)
        time.sleep(1.4)  # noqa: ASYNC251 - nothing runs meanwhile
        sent = [await link.outgoing(), await link.outgoing()]
        assert [message and message.command_id for message in sent] == ["e-1", "e-1"]
        link.answered(pb.CommandResult(command_id="e-1", ok=True))
        assert (await asking).ok

    play(scenario)
