"""Slot pods as a fleet: which events become of what the operator publishes, and what it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from megascale_operator.driver import fleet as module
from megascale_operator.driver.fleet import KubernetesFleet
from megascale_operator.driver.slots import Gone, Slot, Slots

from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Cause
from megascale.core.machine import Core
from megascale.core.state.record import Exclusion, Incident, Node, NodeStatus
from megascale.driver.links import AgentLink, Links
from megascale.fleet.base import FleetRefusedError, Health, SlotEvent


def slot(number: int, **changes: Any) -> Slot:
    fields: dict[str, Any] = {
        "pod": f"q-{number}-0", "uid": f"u{number}", "node": f"n{number}", "node_ready": True,
        "phase": "Running", "ready": True, "leaving": "", "restarts": 0, "domains": (f"rack-{number}",),
    }  # fmt: skip
    return Slot(**{**fields, **changes})


def gone(number: int, **changes: Any) -> Gone:
    fields: dict[str, Any] = {
        "pod": f"q-{number}-0", "uid": f"u{number}", "node": f"n{number}", "reason": "its pod failed",
        "planned": False, "at": 5.0,
    }  # fmt: skip
    return Gone(**{**fields, **changes})


class Driver:
    term = 3

    def __init__(self) -> None:
        self.core, self.links = Core(Policy(nodes=2)), Links()


class Stage:
    def __init__(self, *slots: Slot) -> None:
        self.driver = Driver()
        self.slots = Slots(cast(Any, None), "team", "q")
        self.slots.slots = slots
        self.fleet = KubernetesFleet(self.slots, ("topology.rack",))
        self.fleet.bind(cast(Any, self.driver))
        self.events: list[SlotEvent] = []
        self.changes = 0
        self.fleet.changed = self._count
        for one in slots:
            self.driver.core.live.nodes[one.node] = Node("a", NodeStatus.READY, 0.0)

    def _count(self) -> None:
        self.changes += 1

    async def start(self) -> None:
        await self.fleet.start(self.events.append)

    def publish(self, *slots: Slot, gone: tuple[Gone, ...] = ()) -> None:
        self.slots.slots, self.slots.gone = slots, gone
        for listener in self.slots.listeners:
            listener()

    def link(self, node: str, pod: str = "") -> AgentLink:
        link = AgentLink(node, "a", "address", pod)
        self.driver.links.attach(link)
        return link


def play(stage: Stage, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await stage.start()
        async with asyncio.timeout(20.0):
            await scenario()

    asyncio.run(main())


async def sent(link: AgentLink) -> list[tuple[str, bool]]:
    link.close()
    found = []
    while (message := await link.outgoing()) is not None:
        found.append((message.shutdown.reason, message.shutdown.restart))
    return found


def test_a_pod_that_is_gone_is_told_once_and_one_that_was_sent_away_is_not() -> None:
    stage = Stage(slot(0), slot(1), slot(2))

    async def scenario() -> None:
        lost = (gone(0), gone(1, reason="released"), gone(2, reason="restart r-1", node=""))
        stage.publish(gone=lost)
        stage.publish(gone=lost)
        stage.publish(gone=(*lost, gone(3, node="", at=0.0, planned=True)))
        first, second = stage.events
        assert first == SlotEvent("n0", "its pod failed", 5.0)
        assert (second.node, second.planned) == ("q-3-0", True)
        assert second.at > 1e9

    play(stage, scenario)


def test_the_end_of_a_pod_whose_node_has_a_new_agent_is_no_news() -> None:
    stage = Stage(slot(0), slot(1))
    stage.link("n0", "q-0-1")
    stage.link("n1", "q-1-0")

    async def scenario() -> None:
        stage.publish(gone=(gone(0), gone(1)))
        assert [event.node for event in stage.events] == ["n1"]

    play(stage, scenario)


def test_a_successor_tells_of_nodes_that_were_lost_before_it_came() -> None:
    stage = Stage(slot(1))
    record = stage.driver.core.record
    record.assignment, record.spares = ("n0", "n1"), ("n2",)
    stage.slots.gone = (gone(0), gone(1), gone(2), gone(7))

    async def scenario() -> None:
        assert [event.node for event in stage.events] == ["n0", "n2"]
        stage.publish(slot(1), gone=stage.slots.gone)
        assert len(stage.events) == 2

    play(stage, scenario)


def test_a_notice_is_told_once_and_a_pod_that_failed_is_told_by_its_end() -> None:
    stage = Stage(slot(0))

    async def scenario() -> None:
        stage.publish(slot(0, leaving="evicted: EvictionByEvictionAPI"))
        stage.publish(slot(0, leaving="evicted: EvictionByEvictionAPI"))
        stage.publish(
            slot(1, leaving="released"), slot(2, leaving="restart r-1"), slot(3, leaving="failed: Error")
        )
        (notice,) = stage.events
        assert (notice.node, notice.reason, notice.leaving, notice.planned) == (
            "n0", "evicted: EvictionByEvictionAPI", True, True,
        )  # fmt: skip

    play(stage, scenario)


def test_slots_that_are_wanted_are_those_met_and_those_waited_for() -> None:
    stage = Stage(slot(0), slot(1), slot(2, leaving="evicted"))
    record = stage.driver.core.record
    record.outstanding = 2
    record.excluded = {"n9": Exclusion("why", "i-1", 1.0), "n8": Exclusion("why", "i-1", 1.0)}
    stage.publish(slot(0), slot(1), slot(2, leaving="evicted"), slot(5))

    async def scenario() -> None:
        found = stage.fleet.requests()
        assert (found["slots"], found["avoidNodes"]) == (4, ["n8", "n9"])
        await stage.fleet.release("n1")
        await stage.fleet.release("n1")
        found = stage.fleet.requests()
        assert (found["slots"], found["release"]) == (3, ["q-1-0"])
        stage.publish(slot(0))
        assert stage.fleet.requests()["release"] == []

    play(stage, scenario)


def test_a_node_that_is_released_is_told_to_go() -> None:
    stage = Stage(slot(0))
    link = stage.link("n0")

    async def scenario() -> None:
        before = stage.changes
        await stage.fleet.release("n0")
        assert stage.changes == before + 1
        assert await sent(link) == [("released", False)]
        await stage.fleet.release("n7")  # has no slot and no agent
        assert stage.fleet.requests()["release"] == ["q-0-0"]

    play(stage, scenario)


def test_a_restart_without_an_agent_is_asked_of_the_operator() -> None:
    stage = Stage(slot(0), slot(1))

    async def scenario() -> None:
        await stage.fleet.restart("e-1", "n0")
        await stage.fleet.restart("e-1", "n1")
        await stage.fleet.restart("e-1", "n0")
        assert stage.fleet.requests()["restart"] == [
            {"pod": "q-0-0", "id": "r-3-1"}, {"pod": "q-1-0", "id": "r-3-2"},
        ]  # fmt: skip
        with pytest.raises(FleetRefusedError, match="n7 has no slot"):
            await stage.fleet.restart("e-1", "n7")
        stage.publish(slot(1))
        assert [one["pod"] for one in stage.fleet.requests()["restart"]] == ["q-1-0"]

    play(stage, scenario)


@pytest.mark.parametrize(
    ("after", "incarnation", "asked"),
    [
        (slot(0), "a", ["q-0-0"]),
        (slot(0, restarts=1), "a", []),
        (slot(0, uid="u9"), "a", []),
        (slot(0), "b", []),
    ],
    ids=["ignored", "restarted", "replaced", "came-back"],
)
def test_an_agent_that_does_not_restart_by_itself_is_replaced(
    after: Slot, incarnation: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OBEY_S", 0.0)
    stage = Stage(slot(0))
    link = stage.link("n0")

    async def scenario() -> None:
        serving = asyncio.create_task(stage.fleet.run(cast(Any, stage.driver)))
        await asyncio.sleep(0)
        await stage.fleet.restart("e-1", "n0")
        assert await sent(link) == [("its container is to be restarted", True)]
        stage.publish(after)
        stage.driver.links.attach(AgentLink("n0", incarnation, "address"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert [one["pod"] for one in stage.fleet.requests()["restart"]] == asked
        serving.cancel()

    play(stage, scenario)


def test_an_error_on_the_way_to_a_replacement_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_arguments: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(KubernetesFleet, "_escalate_restart", broken)
    stage = Stage(slot(0))
    stage.link("n0")

    async def scenario() -> None:
        serving = asyncio.create_task(stage.fleet.run(cast(Any, stage.driver)))
        await asyncio.sleep(0)
        await stage.fleet.restart("e-1", "n0")
        with pytest.raises(ExceptionGroup):
            await serving

    play(stage, scenario)


def test_a_quarantine_is_granted_or_refused_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(slot(0))

    async def scenario() -> None:
        stage.driver.core.record.incident = Incident("i-1", Cause.HARDWARE, "XID 79")
        asking = asyncio.create_task(stage.fleet.quarantine("n0", "i-1"))
        await asyncio.sleep(0)
        request = {"node": "n0", "incident": "i-1", "cause": "hardware", "reason": "XID 79"}
        assert stage.fleet.requests()["quarantine"] == [request]
        earlier = [{"node": "n7", "incident": "i-1"}, {"node": "n0", "incident": "i-0"}]
        stage.fleet.take_answers({"quarantined": earlier})
        await asyncio.sleep(0)
        assert not asking.done()
        stage.fleet.take_answers({"quarantined": [*earlier, {"node": "n0", "incident": "i-1"}]})
        await asking
        assert stage.fleet.requests()["quarantine"] == []
        others = [
            {"request": "slots", "node": "n1", "incident": "i-2", "reason": "no"},
            {"request": "quarantine", "node": "n1", "incident": "i-9", "reason": "no"},
        ]
        stage.fleet.take_answers({"refusals": others})
        asking = asyncio.create_task(stage.fleet.quarantine("n1", "i-2"))
        await asyncio.sleep(0)
        assert not asking.done()
        mine = {"request": "quarantine", "node": "n1", "incident": "i-2", "reason": "the breaker is open"}
        stage.fleet.take_answers({"refusals": [*others, mine]})
        with pytest.raises(FleetRefusedError, match="the breaker is open"):
            await asking
        monkeypatch.setattr(module, "_ANSWER_S", 0.01)
        stage.fleet.take_answers({})
        with pytest.raises(FleetRefusedError, match=r"the operator did not answer within 0\.01 s"):
            await stage.fleet.quarantine("n1", "i-3")

    play(stage, scenario)


@pytest.mark.parametrize(
    ("changes", "healthy", "detail"),
    [
        ({}, None, "its pod runs but its agent does not answer"),
        ({"phase": "Pending"}, None, "its pod runs but its agent does not answer"),
        ({"phase": "Failed"}, False, "its pod is Failed"),
        ({"node_ready": False}, False, "its node is not ready"),
    ],
)
def test_what_a_probe_tells(changes: dict[str, Any], healthy: bool | None, detail: str) -> None:
    stage = Stage(slot(0, **changes))

    async def scenario() -> None:
        assert await stage.fleet.probe("n0") == Health(healthy=healthy, detail=detail)
        assert await stage.fleet.probe("n7") == Health(healthy=False, detail="its pod is gone")

    play(stage, scenario)


def test_labels_are_the_domains_that_are_known() -> None:
    stage = Stage(slot(0), slot(1, domains=("",)), slot(2, domains=()))
    assert [stage.fleet.labels(f"n{n}") for n in range(4)] == [{"topology.rack": "rack-0"}, {}, {}, {}]


def test_at_the_end_every_agent_is_let_go() -> None:
    stage = Stage(slot(0))
    links = [stage.link("n0"), stage.link("n1")]

    async def scenario() -> None:
        await stage.fleet.close()
        assert [await sent(link) for link in links] == [[("the job ended", False)]] * 2

    play(stage, scenario)
