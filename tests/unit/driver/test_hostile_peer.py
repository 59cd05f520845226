"""A driver that trains, and a peer with a valid token of a node of its own."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hostile_peer import HostilePeer
from simulated.agent import SimulatedAgent
from simulated.world import Pace, World

from megascale.agent.config import AgentConfig
from megascale.core.state.record import JobState
from megascale.driver.driver import Driver
from megascale.driver.listener import LocalListener
from megascale.driver.log import EventLog
from megascale.driver.ports import DriverPorts
from megascale.driver.record import LocalRecord
from megascale.fleet.base import Health
from megascale.job import load_job
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import STATUS_BYTES, bearer, channel_to, read_address, read_token, stub_on

STEPS = 3000
Scenario = Callable[["Stage"], Awaitable[None]]


class Fleet:
    """Two nodes, `n0` and `n1`, that are started by the test."""

    async def start(self, on_event: Any) -> None: ...
    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None: ...
    async def release(self, node: str) -> None: ...
    async def restart(self, effect_id: str, node: str) -> None: ...
    async def quarantine(self, node: str, incident: str) -> None: ...
    async def probe(self, node: str) -> Health:  # noqa: ARG002
        return Health(healthy=True, detail="")

    async def close(self) -> None: ...
    def labels(self, node: str) -> dict[str, str]:  # noqa: ARG002
        return {}


class Stage:
    """A running driver of a job of three nodes; the third, `n2`, is hostile."""

    def __init__(self, run: RunDir, driver: Driver) -> None:
        self.run, self.driver = run, driver

    def peer(self, **arguments: Any) -> HostilePeer:
        return HostilePeer(self.run, arguments.pop("node", "n2"), **arguments)

    def ranks(self, **fields: Any) -> list[pb.RankStatus]:
        """The record of the one rank of n2, as it should be but for `fields`."""
        now = time.time()
        sound: dict[str, Any] = {
            "rank": 2, "step": 0, "phase": "forward", "progress_at": now, "groups_at": now, "loaded_at": now,
            "saved_step": -1, "snapshot_step": -1,
        }  # fmt: skip
        return [pb.RankStatus(**sound | fields)]

    async def alerted(self, words: str) -> None:
        await until(lambda: any(words in one["message"] for one in self.driver.board._alerts))

    async def status(self) -> dict[str, Any]:
        address = read_address(self.run.driver_file)
        assert address is not None
        async with channel_to(address) as channel:
            call = stub_on(channel).Watch(pb.WatchRequest(), metadata=bearer(read_token(self.run.token_file)))
            async for message in call:
                assert len(message.document) < STATUS_BYTES
                found: dict[str, Any] = json.loads(message.document)
                return found
        raise AssertionError("no status")


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - bounded by the caller
        await asyncio.sleep(0.02)


def drive(folder: Path, scenario: Callable[[Stage, HostilePeer], Awaitable[None]]) -> None:
    """Run `scenario` once two good agents and the peer hold ranks of attempt 1; the driver must live on."""
    run = RunDir(folder)
    spec = {
        "nodes": 3, "spareNodes": 0, "steps": STEPS, "health": {"heartbeatSeconds": 1, "silenceSeconds": 60},
        "runtime": {
            "megatron": {
                "model": {"preset": "tiny"},
                "data": {"path": "x", "sequenceLength": 64, "microBatch": 1, "globalBatch": 3},
            }
        },
    }  # fmt: skip
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    run.job_file.write_text(json.dumps(head | {"spec": spec}))

    async def main() -> None:
        ports = DriverPorts(LocalRecord(run, "j"), Fleet(), LocalListener(run), EventLog(run))
        driver = await Driver.take_over(run, load_job(run.job_file), ports)
        for number in range(3):
            run.renew_agent_token(f"n{number}")
        world = World(Pace(0.05, 0.05, 0.1), STEPS)
        driving = asyncio.create_task(driver.run())
        good = [
            asyncio.create_task(SimulatedAgent(AgentConfig.local(folder, f"n{n}"), world, 1, 0.5).run())
            for n in range(2)
        ]
        stage = Stage(run, driver)
        try:
            playing = asyncio.create_task(play(stage, scenario))
            await asyncio.wait((playing, driving), return_when=asyncio.FIRST_COMPLETED)
            assert not driving.done(), driving.exception()
            await playing
        finally:
            for task in (playing, driving, *good):
                task.cancel()
            await asyncio.gather(driving, *good, return_exceptions=True)

    asyncio.run(main())


async def play(stage: Stage, scenario: Callable[[Stage, HostilePeer], Awaitable[None]]) -> None:
    async with asyncio.timeout(60.0):
        await until(stage.run.driver_file.exists)
        await until(lambda: len(list(stage.driver.links)) == 2)
        async with stage.peer() as peer:
            await peer.send(hello=pb.Hello(pid=1))
            await launched(peer, stage.driver)
            await scenario(stage, peer)


async def launched(peer: HostilePeer, driver: Driver) -> None:
    """Answer orders until the ranks are launched."""
    while True:
        order = await peer.call.read()
        assert isinstance(order, pb.DriverMessage)
        peer.term = order.term
        kind = order.WhichOneof("body")
        if kind == "launch":
            peer.attempt = order.launch.attempt
            assert order.launch.node_rank == 2
        if order.command_id:
            result = pb.CommandResult(command_id=order.command_id, ok=True, store_port=29500)
            await peer.send(result=result)
        if kind == "launch":
            await until(lambda: driver.core.record.state is JobState.LAUNCHING)
            return


LIES: list[tuple[str, dict[str, Any]]] = [
    ("report.step is 1000000000, expected at most 3000", {"step": 10**9}),
    ("report.saved_step is 4000, expected at most 5", {"step": 5, "saved_step": 4000}),
    ("report.saved_step is 6, expected at most 5", {"step": 5, "saved_step": 6, "saved_attempt": 1}),
    ("report.saved_attempt is 9, expected at most 1", {"saved_attempt": 9}),
    ("report.snapshot_step is 7, expected at most 0", {"snapshot_step": 7}),
    ("report.snapshot_attempt is 7, expected at most 1", {"snapshot_attempt": 7}),
    ("report.rank is 0, expected 2 to 2, the ranks of n2", {"rank": 0}),
    ("report.step_seconds is nan, expected seconds", {"step_seconds": math.nan}),
    ("report.stall_seconds is -1.0, expected seconds", {"stall_seconds": -1.0}),
    ("report.peak_flops is inf, expected a number", {"peak_flops": math.inf}),
]


def test_reports_that_cannot_be_true_are_ignored(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        for words, fields in LIES:
            stage.driver._refused_at.clear()
            await peer.report(stage.ranks(**fields))
            await stage.alerted(f"a message of n2 is ignored: {words}")
        stage.driver._refused_at.clear()
        await peer.report(stage.ranks() * 500)
        await stage.alerted("report.ranks is 500, expected at most 1")
        assert stage.driver.core.live.step < 1000
        assert stage.driver.core.record.commits == []
        assert (await stage.status())["step"] < 1000

    drive(tmp_path, scenario)


def test_a_step_far_beyond_the_last_report_is_ignored(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        await peer.report(stage.ranks(step=3))
        await until(lambda: stage.driver.core.live.step >= 3)
        await peer.report(stage.ranks(step=2999))
        await stage.alerted("report.step is 2999, expected at most 1")

    drive(tmp_path, scenario)


def test_times_that_cannot_be_are_replaced(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        for at in (1e300, math.inf, math.nan, 1.0, -5.0):
            names = ("progress_at", "groups_at", "loaded_at", "first_step_at")
            await peer.report(stage.ranks(step=1, **dict.fromkeys(names, at)))
            await peer.send(hardware=pb.HardwareEvent(sign="thermal", text="hot", at=at))
        await peer.alert("the last of them", rank=2)
        await stage.alerted("the last of them")
        link = stage.driver.links.get("n2")
        assert link is not None
        year_s, now = 366 * 86_400.0 + 60.0, time.time()
        assert all(now - year_s < rank.groups_at < now + 120.0 for rank in link.report.ranks)
        assert math.isfinite((await stage.status())["updatedAt"])

    drive(tmp_path, scenario)


def test_terms_that_no_driver_had_do_not_end_the_driver(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        own = peer.term
        for term in (own + 1, 2**63, 2**64 - 1):
            stage.driver._refused_at.clear()
            peer.term = term
            await peer.report([])
            await stage.alerted(f"it has seen a driver of term {term}, this one is of term {own}")

    drive(tmp_path, scenario)


def test_attempts_that_were_not_launched_are_ignored(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        peer.attempt = 2**40
        await peer.report(stage.ranks())
        await stage.alerted(f"fence.attempt is {2**40}, expected at most 1")

    drive(tmp_path, scenario)


def test_large_alerts_do_not_blind_the_status(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        for number in range(40):
            await peer.alert(f"{number} " + "\x1b[31m" * 300_000, rank=2)
        await stage.alerted("39 ")
        document = await stage.status()
        assert len(document["alerts"]) == 20
        assert all(len(alert["message"]) <= 500 for alert in document["alerts"])
        assert "\x1b" not in json.dumps(document, ensure_ascii=False)

    drive(tmp_path, scenario)


def test_a_message_beyond_the_limit_ends_only_its_stream(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        address = read_address(stage.run.driver_file)
        assert address is not None
        options = (("grpc.max_send_message_length", -1),)
        async with grpc.aio.insecure_channel(address.endpoint, options=options) as channel:
            call = stub_on(channel).Attach(metadata=peer._metadata)
            fence = pb.Fence(node="n2", incarnation="evil")
            await call.write(pb.AgentMessage(fence=fence, hello=pb.Hello(pod="x" * (3 << 20))))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stage.status())["job"] == "j"

    drive(tmp_path, scenario)


def test_lists_and_texts_of_other_messages_are_bounded(tmp_path: Path) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        report = '{"type": "E", "message": "m", "detail": ' + "[" * 5000 + "]" * 5000 + "}"
        for body in (
            {"exit": pb.RankExit(rank=0, attempt=1, exit_code=1)},
            {"exit": pb.RankExit(rank=2, attempt=2**50, exit_code=1)},
            {"exit": pb.RankExit(rank=2, attempt=1, step=10**9, exit_code=1)},
            {"segments": pb.SegmentTimes(attempt=1, ranks=[pb.RankSegments(rank=0, compute_s=[9.0])])},
            {"segments": pb.SegmentTimes(attempt=1, ranks=[pb.RankSegments(rank=2, compute_s=[math.nan])])},
            {"evidence": pb.Evidence(ranks=[pb.RankEvidence(rank=0)])},
            {"result": pb.CommandResult(gemm_speed=math.nan)},
            {"result": pb.CommandResult(snapshots=[pb.Commit(step=2**60)])},
        ):
            stage.driver._refused_at.clear()
            stage.driver.board._alerts.clear()
            await peer.send(**body)
            await stage.alerted("a message of n2 is ignored: " + next(iter(body)))
        assert stage.driver.core.record.incident is None
        tail = ["t" * 50_000] * 30
        await peer.send(exit=pb.RankExit(rank=2, attempt=1, exit_code=1, exit_report=report, log_tail=tail))
        await until(lambda: stage.driver.core.record.incident is not None)

    drive(tmp_path, scenario)


def test_a_second_stream_for_a_live_node_is_refused_and_the_job_goes_on(tmp_path: Path) -> None:
    async def scenario(stage: Stage, _peer: HostilePeer) -> None:
        run_token = read_token(stage.run.token_file)
        own = stage.run.agent_token_file("n2").read_text()
        for token in (run_token, own):
            async with stage.peer(node="n0", token=token) as other:
                await other.send(hello=pb.Hello(pid=1))
                assert await other.end() == (
                    grpc.StatusCode.UNAUTHENTICATED,
                    "the token is not that of the agent of 'n0'",
                )
        before = stage.driver.links.get("n0")
        async with stage.peer(node="n0") as other:
            await other.send(hello=pb.Hello(pid=1))
            assert (await other.end())[0] is grpc.StatusCode.OK
        assert stage.driver.links.get("n0") is before
        await stage.alerted("a message of n0 is ignored: fence.incarnation is evil, expected")
        assert stage.driver.core.record.incident is None

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("hello", "fence", "words"),
    [
        ({"host": "[/red]\x1b"}, {}, "hello.host is"),
        ({"pod": "a b"}, {}, "hello.pod is"),
        ({"labels": {str(n): "x" for n in range(100)}}, {}, "hello.labels is 100, expected at most 64"),
        ({"snapshots": [pb.Commit(step=2**60, attempt=1)]}, {}, "hello.snapshots.step is"),
        ({}, {"incarnation": "x" * 1000}, "fence.incarnation is"),
    ],
)
def test_a_hello_that_cannot_be_is_refused(
    tmp_path: Path, hello: dict[str, Any], fence: dict[str, Any], words: str
) -> None:
    async def scenario(stage: Stage, peer: HostilePeer) -> None:
        stage.driver._refused_at.clear()
        async with stage.peer(incarnation=fence.get("incarnation", peer.incarnation)) as other:
            await other.send(hello=pb.Hello(pid=1, **hello))
            assert (await other.end())[0] is grpc.StatusCode.OK
        await stage.alerted(words)

    drive(tmp_path, scenario)
