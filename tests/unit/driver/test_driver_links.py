from __future__ import annotations

import asyncio

import pytest

from megascale.driver.links import AgentLink, Links, NodeLostError, OrderFailedError
from megascale.rpc import megascale_pb2 as pb

ORDER = pb.DriverMessage(term=1, command_id="e-7", kill=pb.Kill(attempt=1, deadline_s=5.0))


def answer(link: AgentLink, *, ok: bool = True, reason: str = "") -> None:
    link.answered(pb.CommandResult(command_id="e-7", ok=ok, reason=reason))


async def sent(link: AgentLink) -> pb.DriverMessage:
    message = await link.outgoing()
    assert message is not None
    return message


def test_an_order_is_answered() -> None:
    async def scenario() -> None:
        links = Links()
        link = AgentLink("node-0", "a", "127.0.0.1")
        links.attach(link)
        order = asyncio.create_task(links.order("node-0", ORDER, 5.0))
        assert (await sent(link)).command_id == "e-7"
        answer(link)
        assert (await order).ok

    asyncio.run(scenario())


def test_an_order_survives_a_reconnect() -> None:
    async def scenario() -> None:
        links = Links()
        first = AgentLink("node-0", "a", "127.0.0.1")
        links.attach(first)
        order = asyncio.create_task(links.order("node-0", ORDER, 5.0))
        await sent(first)
        links.detach(first)
        await asyncio.sleep(0)
        second = AgentLink("node-0", "a", "127.0.0.1")
        links.attach(second)
        assert (await sent(second)).command_id == "e-7"
        answer(second)
        assert (await order).ok

    asyncio.run(scenario())


def test_whoever_waits_for_a_lost_node_is_told() -> None:
    async def scenario() -> None:
        links = Links()
        link = AgentLink("node-0", "a", "127.0.0.1")
        links.attach(link)
        ordered = asyncio.create_task(links.order("node-0", ORDER, 5.0))
        waiting = asyncio.create_task(links.order("node-1", ORDER, 5.0))
        await sent(link)
        links.lost("node-0")
        links.lost("node-1")
        for task in (ordered, waiting):
            with pytest.raises(NodeLostError):
                await task

    asyncio.run(scenario())


def test_a_refused_order_names_its_node() -> None:
    async def scenario() -> None:
        links = Links()
        link = AgentLink("node-0", "a", "127.0.0.1")
        links.attach(link)
        order = asyncio.create_task(links.order("node-0", ORDER, 5.0))
        await sent(link)
        answer(link, ok=False, reason="the zygote died")
        with pytest.raises(OrderFailedError, match="the zygote died") as failure:
            await order
        assert failure.value.nodes == ("node-0",)

    asyncio.run(scenario())


def test_an_order_to_a_silent_agent_times_out() -> None:
    async def scenario() -> None:
        links = Links()
        links.attach(AgentLink("node-0", "a", "127.0.0.1"))
        with pytest.raises(TimeoutError):
            await links.order("node-0", ORDER, 0.05)

    asyncio.run(scenario())


def test_a_newer_stream_ends_the_older_one() -> None:
    async def scenario() -> None:
        links = Links()
        older, newer = (AgentLink("node-0", name, "127.0.0.1") for name in "ab")
        links.attach(older)
        links.attach(newer)
        assert await older.outgoing() is None
        assert links.get("node-0") is newer
        links.detach(older)
        assert links.get("node-0") is newer

    asyncio.run(scenario())
