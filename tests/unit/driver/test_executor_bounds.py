"""How long an effect waits for whom, and what a fleet is asked for; agents and clock are the test's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.driver import compare
from megascale.driver import executor as module
from megascale.driver.compare import compare_speed
from megascale.driver.executor import EffectExecutor
from megascale.driver.links import AgentLink, Links, NodeLostError, OrderFailedError
from megascale.fleet.base import Health
from megascale.rpc import megascale_pb2 as pb


class Asked(Links):
    """Links that note every order with its bound; `answers` are by node, an exception is raised."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[tuple[str, str | None, float]] = []
        self.senders: set[tuple[int, str]] = set()
        self.answers: dict[str, pb.CommandResult | Exception] = {}

    def add(self, *nodes: str, attempt: int = 4) -> None:
        for node in nodes:
            link = AgentLink(node, "a", f"address of {node}")
            link.attempt = attempt
            self.attach(link)

    async def order(self, node: str, message: pb.DriverMessage, timeout_s: float) -> pb.CommandResult:
        self.orders.append((node, message.WhichOneof("body"), timeout_s))
        self.senders.add((message.term, message.command_id))
        answer = self.answers.get(node, pb.CommandResult(ok=True))
        if isinstance(answer, Exception):
            raise answer
        return answer


class Fleet:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.health = Health(healthy=None, detail="could not tell")

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> None:
            self.calls.append((name, *arguments))

        return call

    async def probe(self, node: str) -> Health:
        self.calls.append(("probe", node))
        return self.health


class Stage:
    def __init__(self) -> None:
        self.links, self.fleet = Asked(), Fleet()
        self.answers: list[ev.Event] = []
        self.scans: list[float] = []
        self.finished = 0
        self.executor = EffectExecutor(
            self.links, cast(Any, self.fleet), term=3, post=self.answers.append, scan_commits=self.scan,
            alert=lambda _text: None, finish=self.finish,
        )  # fmt: skip

    async def scan(self, timeout_s: float) -> None:
        self.scans.append(timeout_s)

    async def finish(self) -> None:
        self.finished += 1

    def perform(self, *effects: fx.Effect) -> list[ev.Event]:
        async def main() -> None:
            async with asyncio.timeout(20.0), asyncio.TaskGroup() as tasks:
                for effect in effects:
                    self.executor.start(effect, tasks)

        asyncio.run(main())
        return self.answers


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_fleets_are_asked_for_what_the_effect_names(stage: Stage) -> None:
    stage.perform(
        fx.Acquire("e-1", "why", 2, ("n9",)),
        fx.Release("e-2", "why", "n1"),
        fx.RestartSlot("e-3", "why", "n2"),
        fx.RequestQuarantine("e-4", "why", "n3", "i-1"),
        fx.Probe("e-5", "why", "n4", 5.0),
    )
    assert stage.fleet.calls == [
        ("acquire", "e-1", 2, ("n9",)),
        ("release", "n1"),
        ("restart", "e-3", "n2"),
        ("quarantine", "n3", "i-1"),
        ("probe", "n4"),
    ]
    assert stage.answers[4:] == [ev.ProbeResult("e-5", "n4", None, "could not tell"), ev.EffectDone("e-5")]


def test_an_end_is_performed_once(stage: Stage) -> None:
    assert stage.perform(fx.Finish("e-1", "why", "completed")) == [ev.EffectDone("e-1")]
    assert stage.finished == 1


def test_a_launch_waits_two_minutes_for_each_answer(stage: Stage) -> None:
    stage.links.add("n0", "n1")
    assert stage.perform(fx.Launch("e-1", "why", 4, ("n0", "n1"), None)) == [ev.EffectDone("e-1")]
    assert stage.links.orders == [
        ("n0", "host_store", 120.0),
        ("n0", "launch", 120.0),
        ("n1", "launch", 120.0),
    ]
    assert stage.links.senders == {(3, "e-1/store"), (3, "e-1")}


def test_a_launch_does_not_wait_for_ever_for_the_address_of_its_first_node(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LAUNCH_TIMEOUT_S", 0.02)  # n0 answers, and its stream ends
    found = stage.perform(fx.Launch("e-1", "why", 4, ("n0",), None))
    assert found == [ev.EffectFailed("e-1", "TimeoutError", ())]


def test_all_nodes_that_failed_a_launch_are_named_with_the_reason_of_the_first(stage: Stage) -> None:
    stage.links.add("n0", "n1", "n2", "n3")
    stage.links.answers = {"n1": NodeLostError("n1 is gone"), "n3": OrderFailedError("n3: no", ("n3",))}
    nodes = ("n0", "n1", "n2", "n3")
    assert stage.perform(fx.Launch("e-1", "why", 4, nodes, None)) == [
        ev.EffectFailed("e-1", "n1 is gone", ("n1", "n3"))
    ]


@pytest.mark.parametrize(("took_s", "scan_s"), [(0.0, 9.0), (6.0, 3.0), (8.5, 1.0), (60.0, 1.0)])
def test_a_kill_and_the_scan_after_it_share_a_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, took_s: float, scan_s: float
) -> None:
    readings = [100.0, 100.0 + took_s]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: readings.pop(0)))
    stage.links.answers["n1"] = TimeoutError()
    assert stage.perform(fx.Kill("e-1", "why", 4, ("n0", "n1"), 5.0)) == [
        ev.EffectDone("e-1", {"unreaped": ["n1"]})
    ]
    assert stage.links.orders == [("n0", "kill", 7.0), ("n1", "kill", 7.0)]
    assert stage.links.senders == {(3, "e-1")}
    assert stage.scans == [scan_s]


def test_checks_of_all_nodes_have_the_time_of_the_effect(stage: Stage) -> None:
    stage.links.answers = {
        "n0": pb.CommandResult(ok=True, wrong_numbers="a product differs"),
        "n1": TimeoutError(),
        "n2": NodeLostError("n2 is gone"),
    }
    assert stage.perform(fx.CheckNodes("e-1", "why", ("n0", "n1", "n2", "n3"), 30.0)) == [
        ev.EffectDone("e-1", {"convicted": {"n0": "a product differs"}})
    ]
    assert stage.links.orders == [(f"n{number}", "check_numbers", 30.0) for number in range(4)]
    assert stage.links.senders == {(3, "e-1")}


def test_a_task_is_named_after_its_effect_and_forgotten_when_it_is_done(stage: Stage) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            stage.executor.start(fx.Release("e-7", "why", "n1"), tasks)
            assert [task.get_name() for task in stage.executor._tasks.values()] == ["e-7"]
        assert stage.executor._tasks == {}

    asyncio.run(main())


def compared(links: Asked, speeds: dict[str, float]) -> Health | None:
    links.answers |= {node: pb.CommandResult(ok=True, gemm_speed=speed) for node, speed in speeds.items()}
    return asyncio.run(compare_speed(links, fx.Probe("e-4", "why", "n0", 5.0), 1))


def test_four_peers_of_the_same_attempt_measure_at_the_same_time(stage: Stage) -> None:
    stage.links.add("n0", "n1", "n2", "n3", "n4", "n5")
    stage.links.add("other", attempt=3)
    speeds = {"n0": 100.0, "n1": 100.0, "n2": 100.0, "n3": 100.0, "n4": 100.0, "n5": 100.0, "other": 9e9}
    verdict = compared(stage.links, speeds)
    assert verdict == Health(healthy=True, detail="its matrix products run at 100% of the speed of 4 peers")
    assert stage.links.orders == [(f"n{number}", "measure_speed", 61.0) for number in range(5)]


@pytest.mark.parametrize(
    ("peers", "healthy"), [(120.0, False), (115.0, False), (110.0, None), (105.0, True), (90.0, True)]
)
def test_between_clearly_slower_and_as_fast_nobody_can_tell(
    stage: Stage, peers: float, healthy: bool | None
) -> None:
    stage.links.add("n0", "n1", "n2", "n3")
    verdict = compared(stage.links, {"n0": 100.0, "n1": 50.0, "n2": peers, "n3": 500.0})
    assert (verdict.healthy if verdict else None) is healthy


@pytest.mark.parametrize(
    "error", [OrderFailedError("no memory"), NodeLostError("gone"), TimeoutError()], ids=type
)
def test_a_peer_that_does_not_measure_is_left_out(stage: Stage, error: Exception) -> None:
    stage.links.add("n0", "n1", "n2", "n3")
    stage.links.answers["n1"] = error
    stage.links.answers["n3"] = pb.CommandResult(ok=True, gemm_speed=0.0)
    verdict = compared(stage.links, {"n0": 50.0, "n2": 100.0})
    assert verdict == Health(healthy=False, detail="its matrix products run at 50% of the speed of 1 peers")
    stage.links.answers["n0"] = error
    assert asyncio.run(compare_speed(stage.links, fx.Probe("e-4", "why", "n0", 5.0), 1)) is None


def test_the_unit_of_speed_does_not_matter(stage: Stage) -> None:
    stage.links.add("n0", "n1")
    verdict = compared(stage.links, {"n0": 0.001, "n1": 0.002})
    assert verdict is not None
    assert verdict.healthy is False


def test_a_measurement_is_asked_for_by_its_own_name_and_time(stage: Stage) -> None:
    asked: list[pb.DriverMessage] = []

    async def order(_node: str, message: pb.DriverMessage, _timeout_s: float) -> pb.CommandResult:
        asked.append(message)
        return pb.CommandResult(ok=True, gemm_speed=1.0)

    stage.links.add("n0", "n1")
    stage.links.order = order  # type: ignore[method-assign]
    asyncio.run(compare_speed(stage.links, fx.Probe("e-4", "why", "n0", 5.0), 6))
    measure = pb.MeasureSpeed(duration_s=2.0, deadline_s=60.0)
    assert asked == [pb.DriverMessage(term=6, command_id="e-4/speed", measure_speed=measure)] * 2
    assert compare.PEERS == 4
