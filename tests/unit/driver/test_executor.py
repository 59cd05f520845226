"""Every effect is answered, however its orders and calls end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.driver import executor as module
from megascale.driver.executor import EffectExecutor
from megascale.driver.links import AgentLink, Links, OrderFailedError
from megascale.errors import FencedError, InputError, UnreachableError, first_error
from megascale.fleet.base import FleetRefusedError, Health
from megascale.rpc import megascale_pb2 as pb


class World:
    """Links, a fleet that raises what it is told to, and the answers."""

    def __init__(self) -> None:
        self.links, self.answers = Links(), list[ev.Event]()
        self.raises: BaseException | None = None
        self.health = Health(healthy=True, detail="answers")
        self.scans: list[float] = []
        self.alerts: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.executor = EffectExecutor(
            self.links, self, term=3, post=self.answers.append, scan_commits=self.scan,
            alert=self.alerts.append, finish=self.act,
        )  # fmt: skip

    async def scan(self, timeout_s: float) -> None:
        self.scans.append(timeout_s)
        await self.act()

    async def act(self, *_arguments: Any) -> None:
        if self.raises is not None:
            raise self.raises

    acquire = release = restart = quarantine = act

    async def probe(self, _node: str) -> Health:
        await self.act()
        return self.health

    def add(self, node: str, answer: Callable[[pb.DriverMessage], pb.CommandResult | None]) -> AgentLink:
        """An agent that answers orders; one that is lost with None."""
        link = AgentLink(node, "a", f"address of {node}")
        link.attempt = 4
        self.links.attach(link)

        async def obey() -> None:
            while (order := await link.outgoing()) is not None:
                result = answer(order)
                if result is None:
                    self.links.lost(node)
                else:
                    result.command_id = order.command_id
                    link.answered(result)

        self.tasks.append(asyncio.create_task(obey()))
        return link

    async def perform(self, *effects: fx.Effect) -> list[ev.Event]:
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            for effect in effects:
                self.executor.start(effect, group)
        return self.answers


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        try:
            await scenario(world)
        finally:
            for task in world.tasks:
                task.cancel()

    asyncio.run(main())


def ok(_order: pb.DriverMessage) -> pb.CommandResult:
    return pb.CommandResult(ok=True, store_port=29)


def refuses(_order: pb.DriverMessage) -> pb.CommandResult:
    return pb.CommandResult(ok=False, reason="the zygote died")


def is_lost(_order: pb.DriverMessage) -> None:
    return None


LAUNCH = fx.Launch("e-1", "why", 4, ("n0", "n1"), None)
KILL = fx.Kill("e-1", "why", 4, ("n0", "n1"), 5.0)
BY_FLEET = (
    fx.Acquire("e-1", "why", 2),
    fx.Release("e-1", "why", "n0"),
    fx.RestartSlot("e-1", "why", "n0"),
    fx.RequestQuarantine("e-1", "why", "n0", "i-1"),
    fx.Probe("e-1", "why", "n0", 5.0),
    fx.Finish("e-1", "why", "completed"),
)
RPC_ERROR = grpc.aio.AioRpcError(
    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone"
)
KNOWN = (
    UnreachableError("the API server is away"),
    OSError(28, "No space left on device"),
    InputError("what was given is wrong"),
    TimeoutError(),
    RPC_ERROR,
)


@pytest.mark.parametrize("error", KNOWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("effect", BY_FLEET, ids=lambda effect: type(effect).__name__)
def test_a_call_that_fails_is_answered(effect: fx.Effect, error: Exception) -> None:
    async def scenario(world: World) -> None:
        world.raises = error
        (answer,) = await world.perform(effect)
        assert isinstance(answer, ev.EffectFailed)
        assert answer.effect_id == "e-1"
        assert answer.reason == (str(error) or "TimeoutError")

    run(scenario)


@pytest.mark.parametrize("effect", BY_FLEET[:-1], ids=lambda effect: type(effect).__name__)
def test_a_refusal_of_the_fleet_is_told_as_such(effect: fx.Effect) -> None:
    async def scenario(world: World) -> None:
        world.raises = FleetRefusedError("no free node")
        assert await world.perform(effect) == [ev.FleetRefused("e-1", "no free node")]

    run(scenario)


def test_a_probe_that_tells_something_is_told_before_it_is_done() -> None:
    async def scenario(world: World) -> None:
        found = await world.perform(fx.Probe("e-1", "why", "n0", 5.0))
        assert found == [ev.ProbeResult("e-1", "n0", True, "answers"), ev.EffectDone("e-1")]

    run(scenario)


def test_a_node_that_the_fleet_knows_nothing_of_is_compared_with_its_peers() -> None:
    async def scenario(world: World) -> None:
        world.health = Health(healthy=None, detail="could not tell")
        for node, speed in (("n0", 10.0), ("n1", 20.0)):
            world.add(node, lambda _order, speed=speed: pb.CommandResult(ok=True, gemm_speed=speed))
        (found, _) = await world.perform(fx.Probe("e-1", "why", "n0", 5.0))
        assert isinstance(found, ev.ProbeResult)
        assert found.healthy is False
        assert "50%" in found.detail

    run(scenario)


def test_a_node_that_is_not_heard_is_not_compared() -> None:
    async def scenario(world: World) -> None:
        world.health = Health(healthy=None, detail="could not tell")
        world.add("n0", ok).heard_at = float("-inf")
        (found, _) = await world.perform(fx.Probe("e-1", "why", "n0", 5.0))
        assert found == ev.ProbeResult("e-1", "n0", None, "could not tell")

    run(scenario)


def test_an_error_that_nobody_expects_ends_the_group_and_is_not_answered() -> None:
    async def scenario(world: World) -> None:
        world.raises = KeyError("a defect")
        with pytest.raises(ExceptionGroup) as caught:
            await world.perform(BY_FLEET[0])
        assert isinstance(first_error(caught.value), KeyError)
        assert world.answers == []

    run(scenario)


def test_a_driver_that_is_superseded_ends_and_answers_nothing() -> None:
    async def scenario(world: World) -> None:
        world.raises = FencedError("term 9 took over")
        with pytest.raises(ExceptionGroup) as caught:
            await world.perform(BY_FLEET[0])
        assert isinstance(first_error(caught.value), FencedError)
        assert world.answers == []

    run(scenario)


def test_what_is_cancelled_is_answered_and_its_successor_may_begin_again() -> None:
    async def scenario(world: World) -> None:
        world.add("n0", ok)
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            world.executor.start(LAUNCH, group)  # n1 never comes
            for _ in range(5):
                await asyncio.sleep(0)
            world.executor.cancel()
        assert world.answers == [ev.EffectFailed("e-1", "the driver ended before it was done")]
        world.add("n1", ok)
        assert (await world.perform(LAUNCH))[-1] == ev.EffectDone("e-1")

    run(scenario)


def test_an_effect_under_way_is_not_begun_twice() -> None:
    async def scenario(world: World) -> None:
        assert await world.perform(BY_FLEET[0], BY_FLEET[0]) == [ev.EffectDone("e-1")]

    run(scenario)


def test_a_probe_that_the_fleet_does_not_answer_could_not_tell() -> None:
    async def scenario(world: World) -> None:
        async def hangs(_node: str) -> Health:
            await asyncio.Event().wait()
            raise AssertionError

        world.probe = hangs  # type: ignore[method-assign]
        assert await world.perform(fx.Probe("e-1", "why", "n0", 0.05)) == [
            ev.ProbeResult("e-1", "n0", None, "the fleet did not answer in 0.05 s"),
            ev.EffectDone("e-1"),
        ]

    run(scenario)


def test_evidence_is_asked_of_agents_that_connect_later_and_of_those_that_never_do() -> None:
    async def scenario(world: World) -> None:
        collect = fx.CollectEvidence("e-1", "why", 4, ("n0", "n1", "n2"), 0.3)
        performing = asyncio.create_task(world.perform(collect))
        await asyncio.sleep(0.01)
        links = {}
        for node, attempt in (("n0", 4), ("n1", 3)):
            links[node] = AgentLink(node, "a", "address")
            links[node].attempt = attempt
            world.links.attach(links[node])
        assert await performing == [ev.EffectDone("e-1")]
        order = await links["n0"].outgoing()
        assert order is not None
        assert (order.command_id, order.WhichOneof("body")) == ("e-1", "collect_evidence")
        assert links["n1"]._outbox.empty()

    run(scenario)


def test_a_second_answer_about_the_store_is_none_about_the_launch() -> None:
    """The node of the store reconnected while it was asked, so it was asked twice and answers twice."""

    async def scenario(world: World) -> None:
        first, second = (AgentLink("n0", "a", "address") for _ in range(2))
        world.links.attach(first)
        launch = fx.Launch("e-1", "why", 4, ("n0",), None)
        performing = asyncio.create_task(world.perform(launch))
        order = await first.outgoing()
        assert order is not None
        world.links.attach(second)
        assert await second.outgoing() == order
        answer = pb.CommandResult(command_id=order.command_id, ok=True, store_port=29)
        second.answered(answer)
        started = await second.outgoing()
        assert started is not None
        assert started.WhichOneof("body") == "launch"
        second.answered(answer)
        await asyncio.sleep(0)
        assert not performing.done()
        second.answered(pb.CommandResult(command_id=started.command_id, ok=True))
        assert await performing == [ev.EffectDone("e-1")]

    run(scenario)


def test_a_launch_goes_to_all_nodes_with_the_address_of_the_first() -> None:
    async def scenario(world: World) -> None:
        orders: list[tuple[str, pb.DriverMessage]] = []
        for node in ("n0", "n1"):
            world.add(node, lambda order, node=node: orders.append((node, order)) or ok(order))
        assert await world.perform(LAUNCH) == [ev.EffectDone("e-1")]
        (host, store), *launches = orders
        assert (host, store.WhichOneof("body"), store.host_store.attempt) == ("n0", "host_store", 4)
        assert {(node, order.launch.node_rank) for node, order in launches} == {("n0", 0), ("n1", 1)}
        for _, order in orders:
            assert order.term == 3
        assert store.command_id == "e-1/store"
        for _, order in launches:
            assert order.command_id == "e-1"
            assert (order.launch.store_host, order.launch.store_port) == ("address of n0", 29)
            assert (order.launch.nodes, order.launch.HasField("resume")) == (2, False)

    run(scenario)


def test_a_launch_that_fails_names_the_nodes_at_fault() -> None:
    async def scenario(world: World) -> None:
        world.add("n0", ok)
        world.add("n1", refuses)
        (answer,) = await world.perform(LAUNCH)
        assert answer == ev.EffectFailed("e-1", "n1: the zygote died", ("n1",))

    run(scenario)


def test_a_launch_on_a_node_that_is_lost_names_it() -> None:
    async def scenario(world: World) -> None:
        world.add("n0", ok)
        world.add("n1", is_lost)
        (answer,) = await world.perform(LAUNCH)
        assert answer == ev.EffectFailed("e-1", "n1 is gone", ("n1",))

    run(scenario)


def test_a_node_that_does_not_answer_a_launch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAUNCH_TIMEOUT_S", 0.05)

    async def scenario(world: World) -> None:
        world.add("n0", ok)
        (answer,) = await world.perform(LAUNCH)
        assert answer == ev.EffectFailed("e-1", "n1 did not answer in 0.05 s", ("n1",))

    run(scenario)


@pytest.mark.parametrize(
    ("answer", "unreaped"),
    [
        (ok, []),
        (is_lost, []),
        (refuses, ["n1"]),
        (lambda _order: pb.CommandResult(ok=True, unreaped=[3]), ["n1"]),
    ],
    ids=["reaped", "gone", "refused", "stuck"],
)
def test_a_kill_names_the_nodes_whose_ranks_may_still_run(answer: Any, unreaped: list[str]) -> None:
    async def scenario(world: World) -> None:
        world.add("n0", ok)
        world.add("n1", answer)
        assert await world.perform(KILL) == [ev.EffectDone("e-1", {"unreaped": unreaped})]

    run(scenario)


def test_a_node_that_does_not_answer_a_kill_may_still_run_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KILL_SLACK_S", 0.0)

    async def scenario(world: World) -> None:
        world.add("n0", ok)
        found = await world.perform(fx.Kill("e-1", "why", 4, ("n0", "n1"), 0.05))
        assert found == [ev.EffectDone("e-1", {"unreaped": ["n1"]})]

    run(scenario)


def test_snapshots_of_killed_ranks_are_told_before_the_kill_is_done() -> None:
    async def scenario(world: World) -> None:
        snapshots = [pb.Commit(step=8, attempt=4)]
        world.add("n0", lambda _order: pb.CommandResult(ok=True, snapshots=snapshots))
        found = await world.perform(fx.Kill("e-1", "why", 4, ("n0",), 5.0))
        assert found == [ev.SnapshotReady("n0", 4, 8), ev.EffectDone("e-1", {"unreaped": []})]

    run(scenario)


def test_the_scan_before_a_kill_is_answered_gets_what_is_left_of_its_time() -> None:
    async def scenario(world: World) -> None:
        await world.perform(fx.Kill("e-1", "why", 4, (), 5.0))
        (left_s,) = world.scans
        assert 8.5 < left_s <= 9.0

    run(scenario)


def test_checks_convict_those_that_say_so_and_nobody_else() -> None:
    async def scenario(world: World) -> None:
        world.add("n0", lambda _order: pb.CommandResult(ok=True, wrong_numbers="a product differs"))
        world.add("n1", refuses)
        world.add("n2", ok)
        found = await world.perform(fx.CheckNodes("e-1", "why", ("n0", "n1", "n2", "n3"), 0.2))
        assert found == [ev.EffectDone("e-1", {"convicted": {"n0": "a product differs"}})]

    run(scenario)


@pytest.mark.parametrize("effect", [KILL, LAUNCH, fx.CheckNodes("e-1", "why", ("n0",), 5.0)])
def test_a_defect_on_the_way_to_an_agent_ends_the_group(
    effect: fx.Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_arguments: Any) -> pb.CommandResult:
        raise KeyError("a defect")

    async def scenario(world: World) -> None:
        monkeypatch.setattr(world.links, "order", broken)
        with pytest.raises(ExceptionGroup) as caught:
            await world.perform(effect)
        assert isinstance(first_error(caught.value), KeyError)

    run(scenario)


def test_saves_go_to_those_who_run_the_attempt_and_stacks_to_those_who_are_asked() -> None:
    async def scenario(world: World) -> None:
        links = {node: AgentLink(node, "a", "address") for node in ("n0", "n1", "n2")}
        for link in links.values():
            link.attempt = 4
            world.links.attach(link)
        links["n2"].attempt = 3
        save = fx.SaveNow("e-1", "why", 4, then_stop=True, deadline_s=5.0)
        await world.perform(save, fx.CollectEvidence("e-2", "why", 4, ("n1", "n2"), 5.0))
        got = {}
        for node, link in links.items():
            link.close()
            got[node] = []
            while (message := await link.outgoing()) is not None:
                got[node].append((message.command_id, message.WhichOneof("body")))
        save_order, stacks = ("e-1", "save"), ("e-2", "collect_evidence")
        assert got == {"n0": [save_order], "n1": [save_order, stacks], "n2": []}

    run(scenario)


def test_people_are_shown_the_reason_of_a_page_and_exclusions_need_no_call() -> None:
    async def scenario(world: World) -> None:
        found = await world.perform(fx.Page("e-1", "look here"), fx.Exclude("e-2", "why", "n0", "i-1"))
        assert found == [ev.EffectDone("e-1"), ev.EffectDone("e-2")]
        assert world.alerts == ["look here"]

    run(scenario)


def test_an_order_that_failed_names_no_node_where_none_is_known() -> None:
    assert OrderFailedError("why").nodes == ()
