"""No field of an effect is dropped between the core and the agents or the fleet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from effect_samples import ATTEMPT, CASES, EFFECTS, IDS, with_other

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.driver.executor import EffectExecutor
from megascale.driver.links import AgentLink, Links
from megascale.driver.wire import LOCAL_ONLY
from megascale.fleet.base import Health
from megascale.rpc import megascale_pb2 as pb


class Recorder:
    """A fleet, agents and people that write down what they are asked for, and agree to everything."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def take(self, answer: ev.Event) -> None:
        """Every effect of this test can be carried out."""
        assert isinstance(answer, ev.EffectDone | ev.ProbeResult)

    async def acquire(self, _effect_id: str, count: int, avoid: tuple[str, ...]) -> None:
        self.seen.append(("acquire", count, avoid))

    async def release(self, node: str) -> None:
        self.seen.append(("release", node))

    async def restart(self, _effect_id: str, node: str) -> None:
        self.seen.append(("restart", node))

    async def quarantine(self, node: str, incident: str) -> None:
        self.seen.append(("quarantine", node, incident))

    async def probe(self, node: str) -> Health:
        self.seen.append(("probe", node))
        return Health(healthy=None, detail="could not tell")

    async def scan(self, _timeout_s: float) -> None:
        """No commits to be found."""

    async def finish(self) -> None:
        self.seen.append("finish")

    async def agent(self, link: AgentLink) -> None:
        while (order := await link.outgoing()) is not None:
            self.seen.append((link.node, order.SerializeToString(deterministic=True)))
            link.answered(
                pb.CommandResult(command_id=order.command_id, ok=True, store_port=5, gemm_speed=1.0)
            )


def carry_out(effect: fx.Effect) -> list[Any]:
    """What leaves the driver for an effect, in an order that does not depend on chance."""

    async def scenario() -> list[Any]:
        world, links = Recorder(), Links()
        agents = []
        for node in ("n0", "n1", "n2"):
            link = AgentLink(node, "a", f"address of {node}")
            link.attempt = ATTEMPT
            links.attach(link)
            agents.append(asyncio.create_task(world.agent(link)))
        executor = EffectExecutor(
            links, world, term=3, post=world.take, scan_commits=world.scan,
            alert=world.seen.append, finish=world.finish,
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            executor.start(effect, tasks)
        for link in links:
            link.close()
        await asyncio.gather(*agents)
        return sorted(world.seen, key=str)

    return asyncio.run(scenario())


def test_every_kind_of_effect_has_a_sample() -> None:
    assert {type(effect) for effect in EFFECTS} == set(fx.Effect.__args__)


@pytest.mark.parametrize(("effect", "name"), CASES, ids=IDS)
def test_a_field_reaches_whoever_acts_or_is_listed_as_local(effect: fx.Effect, name: str) -> None:
    has_effect = carry_out(effect) != carry_out(with_other(effect, name))
    listed = LOCAL_ONLY.get(type(effect), {}).get(name, "")
    assert has_effect is not bool(listed), listed or "the field is neither carried nor listed in LOCAL_ONLY"


def test_nothing_is_listed_that_does_not_exist() -> None:
    for kind, names in LOCAL_ONLY.items():
        assert set(names) <= set(kind.__dataclass_fields__), kind
        assert all(names.values()), kind
