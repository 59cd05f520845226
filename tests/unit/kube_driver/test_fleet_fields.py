"""The fleet on a cluster uses every field of an effect that reaches it, or says why it does not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from effect_samples import ATTEMPT, CASES, with_other
from megascale_operator.driver.fleet import UNUSED, KubernetesFleet
from megascale_operator.driver.slots import Slot, Slots

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.core.state.record import Incident
from megascale.driver.executor import EffectExecutor
from megascale.driver.links import AgentLink, Links
from megascale.driver.wire import LOCAL_ONLY

KINDS = (fx.Acquire, fx.Release, fx.RestartSlot, fx.RequestQuarantine, fx.Probe, fx.Finish)
MINE = [case for case in CASES if isinstance(case[0], KINDS)]


class Driver:
    """As much of a driver as the fleet asks for."""

    term = 3

    def __init__(self) -> None:
        self.core = Core(Policy(nodes=2))
        self.links = Links()
        incidents = [Incident(f"i-{number}", "crash", f"reason {number}") for number in (1, 2)]
        self.core.record.incidents = incidents
        for node in ("n0", "n1"):
            link = AgentLink(node, "a", "address")
            link.attempt, link.heard_at = ATTEMPT, float("-inf")
            self.links.attach(link)


def slot(number: int) -> Slot:
    return Slot(
        f"q-{number}-0",
        f"u{number}",
        f"n{number}",
        node_ready=number == 1,
        phase="Running",
        ready=True,
        leaving="",
        restarts=0,
    )


async def _no_store(_timeout_s: float) -> None:
    """No commits to be found."""


def outcome(effect: fx.Effect) -> list[Any]:
    """What the operator and the agents are told, and what the core is answered."""

    async def scenario() -> list[Any]:
        driver, seen, ended = Driver(), [], asyncio.Event()
        slots = Slots(cast(Any, None), "team", "q")
        slots.slots = (slot(0), slot(1))
        fleet = KubernetesFleet(slots)
        fleet.bind(cast(Any, driver))
        fleet.changed = lambda: seen.append(fleet.requests())
        await fleet.start(lambda _event: None)
        fleet.take_answers(
            {
                "refusals": [
                    {"request": "quarantine", "node": n, "incident": i, "reason": n + i}
                    for n in ("n0", "n1")
                    for i in ("i-1", "i-2")
                ]
            }
        )

        def post(event: ev.Event) -> None:
            seen.append(event)
            if isinstance(event, ev.EffectDone | ev.FleetRefused):
                ended.set()

        executor = EffectExecutor(
            driver.links, fleet, term=3, post=post, scan_commits=_no_store, alert=seen.append,
            finish=fleet.close,
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            executor.start(effect, tasks)
            await ended.wait()
        for link in driver.links:
            link.close()
            while (message := await link.outgoing()) is not None:
                seen.append((link.node, str(message)))
        await fleet.close()
        return seen

    return asyncio.run(scenario())


@pytest.mark.parametrize(("effect", "name"), MINE, ids=[f"{type(e).__name__}.{n}" for e, n in MINE])
def test_a_field_reaches_the_operator_or_is_listed(effect: fx.Effect, name: str) -> None:
    has_effect = outcome(effect) != outcome(with_other(effect, name))
    answers_only = name == "effect_id"
    listed = {**LOCAL_ONLY.get(type(effect), {}), **UNUSED.get(type(effect).__name__, {})}.get(name, "")
    assert has_effect is (answers_only or not listed)
