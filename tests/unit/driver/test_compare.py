"""A node that lags is asked to compute beside its peers."""

from __future__ import annotations

import asyncio

import pytest

from megascale.core.contract import effects as fx
from megascale.driver.compare import compare_speed
from megascale.driver.links import AgentLink, Links
from megascale.fleet.base import Health
from megascale.rpc import megascale_pb2 as pb

PROBE = fx.Probe("e-4", "slower than its peers", "n0", 5.0)


def ask(speeds: dict[str, float | None]) -> Health | None:
    """The verdict on n0 when nodes measure these speeds; None = the agent fails."""

    async def obey(link: AgentLink, speed: float | None) -> None:
        order = await link.outgoing()
        assert order is not None
        assert order.measure_speed.duration_s > 0
        ok = speed is not None
        link.answered(pb.CommandResult(command_id=order.command_id, ok=ok, gemm_speed=speed or 0.0))

    async def scenario() -> Health | None:
        links = Links()
        agents = []
        for node, speed in speeds.items():
            link = AgentLink(node, "a", "127.0.0.1")
            links.attach(link)
            agents.append(asyncio.create_task(obey(link, speed)))
        verdict = await compare_speed(links, PROBE, 1)
        for agent in agents:
            agent.cancel()
        return verdict

    return asyncio.run(scenario())


def test_a_node_that_computes_slower_is_convicted_with_the_figure() -> None:
    verdict = ask({"n0": 50.0, "n1": 100.0, "n2": 101.0, "n3": 10.0})
    assert verdict is not None
    assert verdict.healthy is False
    assert "at 50% of the speed of 3 peers" in verdict.detail


@pytest.mark.parametrize(("speed", "healthy"), [(100.0, True), (130.0, True), (92.0, None)])
def test_a_node_as_fast_as_its_peers_is_acquitted(speed: float, healthy: bool | None) -> None:
    verdict = ask({"n0": speed, "n1": 100.0, "n2": 100.0})
    assert (verdict.healthy if verdict else None) is healthy


def test_nobody_is_convicted_without_a_measurement() -> None:
    assert ask({"n0": None, "n1": 100.0}) is None
    assert ask({"n0": 50.0, "n1": None}) is None
    assert ask({"n0": 50.0}) is None
    assert ask({"n1": 50.0}) is None
