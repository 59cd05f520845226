"""What a driver makes of messages and commands; no stream, no process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.core.state.record import Exclusion, JobState, Node, NodeStatus
from megascale.driver import driver as module
from megascale.driver.driver import Driver
from megascale.driver.inbox import Inbox
from megascale.driver.links import AgentLink
from megascale.driver.pauses import PauseWatch
from megascale.driver.ports import DriverPorts
from megascale.driver.record import Claim
from megascale.errors import FencedError, UnreachableError
from megascale.fleet.base import SlotEvent
from megascale.job import TrainingJob, canonical_json, from_mapping
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb


def job_of(nodes: int = 2) -> TrainingJob:
    spec = {
        "nodes": nodes, "spareNodes": 0, "steps": 10, "runtime": {"command": {"args": ["true"]}},
        "health": {"heartbeatSeconds": 5, "silenceSeconds": 30},
    }  # fmt: skip
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    return from_mapping(head | {"spec": spec})


class World:
    """Record, log and fleet of a driver, all in memory; the first `failures` writes fail."""

    is_full = False

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.written: list[Any] = []
        self.carried_out: list[fx.Effect] = []

    def begin(self, _header: Any, _term: int) -> None:
        """Headers are of no interest here."""

    async def append(self, entry: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(("log", type(entry.event).__name__))

    async def write(self, _snapshot: Any, _revisions: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(("record", None))

    def labels(self, _node: str) -> dict[str, str]:
        return {"rack": "r1"}


class Stage:
    def __init__(self, folder: Path, nodes: int = 2, *, shared_machine: bool = False) -> None:
        self.world = World()
        port = cast(Any, self.world)
        self.context = LogContext("driver")
        ports = DriverPorts(port, port, port, port, shared_machine=shared_machine, log_context=self.context)
        self.driver = Driver(RunDir(folder), job_of(nodes), ports, Claim(7, None))
        start = self.world.carried_out.append
        self.driver._executor.start = lambda effect, _tasks: start(effect)  # type: ignore[method-assign]

    @property
    def posted(self) -> list[ev.Event]:
        inbox = self.driver._inbox
        return [asyncio.run(inbox.next(0.0)) for _ in range(len(inbox))]

    def link(self, node: str = "n0") -> AgentLink:
        return AgentLink(node, "a", "address")

    async def apply(self, event: ev.Event) -> None:
        await self.driver._apply(event, cast(Any, None))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def hello(*, term: int = 0, attempt: int = 0, **fields: Any) -> pb.AgentMessage:
    fence = pb.Fence(node="n0", incarnation="a", term=term, attempt=attempt)
    return pb.AgentMessage(fence=fence, hello=pb.Hello(pid=1, **fields))


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_an_agent_that_says_hello_is_welcomed_and_told_to_the_core(stage: Stage) -> None:
    link = stage.link()
    stage.driver.core.record.attempt = 4
    message = hello(attempt=4, ranks=[0, 1], labels={"row": "5"}, snapshots=[pb.Commit(step=8, attempt=4)])
    assert stage.driver.attach(link, message)
    assert stage.driver.links.get("n0") is link
    welcome = asyncio.run(link.outgoing())
    assert welcome is not None
    assert (welcome.term, welcome.welcome.attempt) == (7, 4)
    assert welcome.welcome.report_period_s == pytest.approx(0.2 + 0.004 * 2)
    assert link.attempt == 4
    assert stage.posted == [
        ev.SnapshotReady("n0", 4, 8),
        ev.NodeJoined("n0", "a", 4, (0, 1), {"rack": "r1", "row": "5"}),
    ]
    stage.driver.detach(link)
    assert stage.driver.links.get("n0") is None


def test_large_jobs_report_with_every_heartbeat_and_no_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path, nodes=5000)
    link = stage.link()
    stage.driver.attach(link, hello())
    welcome = asyncio.run(link.outgoing())
    assert welcome is not None
    assert welcome.welcome.report_period_s == 5.0


@pytest.mark.parametrize("term", [0, 6, 7])
def test_agents_of_this_term_or_an_earlier_one_are_taken(stage: Stage, term: int) -> None:
    assert stage.driver.attach(stage.link(), hello(term=term))
    assert not stage.driver._ended.is_set()


def test_an_agent_that_has_seen_a_successor_is_not_taken_and_has_the_record_read(stage: Stage) -> None:
    assert not stage.driver.attach(stage.link(), hello(term=8))
    assert stage.driver._doubted.is_set()
    assert not stage.driver._ended.is_set()
    assert stage.driver.links.get("n0") is None
    assert stage.posted == []


def received(stage: Stage, node: str = "n0", attempt: int = 4, **body: Any) -> AgentLink:
    link = stage.link(node)
    link.heard_at = -1.0
    record = stage.driver.core.record
    record.attempt, record.assignment, record.ranks = 4, ("n0", "n1"), 8
    fence = pb.Fence(node=node, term=7, attempt=attempt)
    stage.driver.receive(link, pb.AgentMessage(fence=fence, **body))
    assert link.heard_at > 0
    assert link.attempt == attempt
    return link


def test_a_message_of_a_higher_term_is_not_taken_in(stage: Stage) -> None:
    link = stage.link()
    stage.driver.receive(link, pb.AgentMessage(fence=pb.Fence(term=8), exit=pb.RankExit(exit_code=1)))
    assert stage.posted == []
    assert stage.driver._doubted.is_set()


def test_reports_become_heartbeats_and_commits_that_are_new(stage: Stage) -> None:
    stage.driver.core.record.commits = [Commit(5, 4)]
    at = time.time() - 5.0
    ranks = [
        pb.RankStatus(
            rank=0, step=9, phase="forward", saved_step=8, saved_attempt=4, progress_at=at, tokens=10
        ),
        pb.RankStatus(rank=1, step=8, phase="forward", saved_step=5, saved_attempt=4),
    ]
    link = received(stage, report=pb.Report(ranks=ranks))
    heartbeat, commit = stage.posted
    assert isinstance(heartbeat, ev.NodeReport)
    assert (heartbeat.node, heartbeat.attempt, heartbeat.ranks[0].step) == ("n0", 4, 9)
    assert isinstance(commit, ev.CommitDone)
    assert (commit.step, commit.attempt) == (8, 4)
    assert list(link.report.ranks) == ranks
    assert [sample[1:] for sample in stage.driver.board._samples] == [(at, 10)]


def test_a_report_without_ranks_is_a_heartbeat(stage: Stage) -> None:
    received(stage, report=pb.Report())
    assert stage.posted == [ev.NodeReport("n0", "a", 4)]


def test_log_lines_are_shown_to_people_and_told_to_the_core(stage: Stage) -> None:
    received(
        stage, log=pb.LogMatch(rank=3, rule="oom", category="host", action="alert", line="out of memory")
    )
    (event,) = stage.posted
    assert isinstance(event, ev.LogMatch)
    (alert,) = stage.driver.board.document()["alerts"]
    assert alert["message"] == "n0, rank 3, oom: out of memory"


def test_other_bodies_become_their_events(stage: Stage) -> None:
    received(stage, exit=pb.RankExit(rank=1, exit_code=1))
    received(stage, hardware=pb.HardwareEvent(sign="xid", code=79))
    received(stage, evidence=pb.Evidence(command_id="e-1"))
    assert [type(event) for event in stage.posted] == [ev.RankExited, ev.HardwareEvent, ev.Evidence]


def test_segment_times_are_joined_for_the_ranks_of_this_attempt(stage: Stage) -> None:
    times = pb.RankSegments(rank=0, first_step=7, compute_s=[0.5])
    others = [pb.RankSegments(rank=rank, first_step=7, compute_s=[0.5]) for rank in range(1, 4)]
    received(stage, segments=pb.SegmentTimes(attempt=4, ranks=[times, *others]))
    received(stage, segments=pb.SegmentTimes(attempt=3, ranks=[times]))
    others = [pb.RankSegments(rank=rank, first_step=7, compute_s=[0.25]) for rank in range(4, 8)]
    received(stage, "n1", segments=pb.SegmentTimes(attempt=4, ranks=others))
    assert stage.posted == [ev.SegmentTimes(4, 7, (0.5,) * 4 + (0.25,) * 4)]


def test_an_answer_reaches_who_waits_for_it(stage: Stage) -> None:
    async def scenario() -> None:
        link = stage.link()
        order = asyncio.create_task(link.order(pb.DriverMessage(command_id="e-1")))
        await asyncio.sleep(0)
        result = pb.CommandResult(command_id="e-1", ok=True, store_port=9)
        stage.driver.receive(link, pb.AgentMessage(fence=pb.Fence(term=7), result=result))
        assert (await order).store_port == 9

    in_loop(scenario)


def test_the_end_of_a_slot_is_told_with_the_newest_incarnation(stage: Stage) -> None:
    gone = SlotEvent("n0", "its agent ended", 5.0)
    stage.driver._on_slot_event(gone)
    stage.driver.core.live.nodes["n0"] = Node("known", NodeStatus.READY, 0.0)
    stage.driver._on_slot_event(gone)
    link = AgentLink("n0", "linked", "address")
    stage.driver.links.attach(link)
    stage.driver._on_slot_event(gone)
    assert [cast(ev.NodeGone, event).incarnation for event in stage.posted] == [None, "known", "linked"]
    assert stage.driver.links.get("n0") is None
    stage.driver._on_slot_event(SlotEvent("n0", "drained", 5.0, leaving=True))
    assert stage.posted == [ev.HardwareEvent("n0", "drain", text="drained", at=5.0)]


def test_commands_are_checked_before_they_are_taken(stage: Stage) -> None:
    driver = stage.driver
    driver.core.live.nodes["n0"] = Node("a", NodeStatus.READY, 0.0)
    driver.core.record.excluded["n9"] = Exclusion("fan noise", "i-1", 1.0)
    ok, message = driver.command(pb.CommandRequest(command="dance"))
    assert (ok, message) == (
        False, "unknown command 'dance'; known: evict, release, resume, save, stop, suspend",
    )  # fmt: skip
    assert driver.command(pb.CommandRequest(command="reopen"))[0] is False
    for command in ("evict", "release"):
        ok, message = driver.command(pb.CommandRequest(command=command, node="n7"))
        assert (ok, message) == (False, "no node 'n7'; known: n0, n9")
    for node in ("n0", "n9"):
        request = pb.CommandRequest(command="release", node=node, reason="why", by="ann")
        assert driver.command(request) == (True, "accepted")
    assert driver.command(pb.CommandRequest(command="save", reason="why")) == (True, "accepted")
    assert stage.posted == [
        ev.ManualCommand(Command.RELEASE, "why", "n0", "ann"),
        ev.ManualCommand(Command.RELEASE, "why", "n9", "ann"),
        ev.ManualCommand(Command.SAVE, "why"),
    ]
    driver.core.record.state, driver.core.record.finish_state = JobState.FINISHED, FinishState.FAILED
    assert driver.command(pb.CommandRequest(command="stop")) == (False, "the job is failed")


def test_what_is_decided_is_written_down_before_it_is_done(stage: Stage) -> None:
    async def scenario() -> None:
        seen: list[int] = []
        append = stage.world.carried_out.append
        stage.driver._executor.start = lambda effect, _tasks: (  # type: ignore[method-assign]
            seen.append(len(stage.world.written)), append(effect)
        )  # fmt: skip
        await stage.apply(ev.DriverStarted(7))
        assert stage.world.written == [("log", "DriverStarted"), ("record", None)]
        assert [type(effect) for effect in stage.world.carried_out] == [fx.Acquire]
        assert seen == [2]
        assert stage.driver.changed.is_set()

    in_loop(scenario)


def test_an_event_that_changes_nothing_is_only_logged(stage: Stage) -> None:
    async def scenario() -> None:
        await stage.apply(ev.DriverStarted(7))
        stage.driver.changed.clear()
        stage.world.written.clear()
        await stage.apply(ev.Tick())
        assert stage.world.written == [("log", "Tick")]
        assert not stage.driver.changed.is_set()

    in_loop(scenario)


def test_a_commit_is_written_to_the_record(stage: Stage) -> None:
    async def scenario() -> None:
        await stage.apply(ev.DriverStarted(7))
        stage.driver.core.record.attempt = 1
        stage.driver.core.record.lineage = {1: None}
        stage.world.written.clear()
        await stage.apply(ev.CommitDone(5, 1, 1.0))
        assert stage.world.written == [("log", "CommitDone"), ("record", None)]
        assert stage.context.attempt == 1

    in_loop(scenario)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), UnreachableError("the API server is away")]
)
def test_a_decision_that_cannot_be_written_is_tried_again_and_people_are_told(
    stage: Stage, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def pause(longest_s: float) -> None:
        slept.append(longest_s)

    monkeypatch.setattr(stage.driver._writer, "_pause", pause)

    async def scenario() -> None:
        stage.world.failures = [error] * 5
        await stage.apply(ev.DriverStarted(7))
        assert stage.world.written == [("log", "DriverStarted"), ("record", None)]
        assert len(stage.world.carried_out) == 1
        began, ended = (alert["message"] for alert in stage.driver.board.document()["alerts"])
        assert f"the driver cannot write its record or log ({error}); decisions wait" in began
        assert ended == "the driver can write its record and log again"

    in_loop(scenario)
    assert slept == [1.0, 2.0, 4.0, 4.0, 4.0]


class FullDisk(World):
    """Nothing can be written."""

    async def append(self, _entry: Any) -> None:
        raise OSError(28, "No space left on device")

    async def write(self, _snapshot: Any, _revisions: Any) -> None:
        raise OSError(28, "No space left on device")


def full(stage: Stage) -> FullDisk:
    disk = FullDisk()
    stage.driver._writer._log = cast(Any, disk)
    stage.driver._ports = dataclasses.replace(stage.driver._ports, record=cast(Any, disk))
    return disk


def test_what_decides_nothing_does_not_wait_for_a_full_disk(stage: Stage) -> None:
    async def scenario() -> None:
        for event in (ev.DriverStarted(7), ev.NodeJoined("n0", "a")):
            await stage.apply(event)
        full(stage)
        async with asyncio.timeout(5.0):
            for _ in range(3):
                await stage.apply(ev.NodeReport("n0", "a"))
        (alert,) = (alert["message"] for alert in stage.driver.board.document()["alerts"])
        assert "training goes on, and events are left out of the log (1 so far)" in alert

    in_loop(scenario)


def test_a_stop_is_carried_out_although_nothing_can_be_written(stage: Stage) -> None:
    """A decision of before waits, and is dropped; what stops the job needs no record."""

    async def scenario() -> None:
        driver, world = stage.driver, stage.world
        tasks = cast(Any, None)
        for event in (ev.DriverStarted(7), ev.NodeJoined("n0", "a"), ev.NodeJoined("n1", "a")):
            await stage.apply(event)
        kinds = [type(effect) for effect in world.carried_out]
        assert fx.Launch in kinds
        full(stage)
        driver.post(ev.EffectFailed(_id_of(world, fx.Launch), "no", ("n0",)))
        async with asyncio.timeout(10.0):
            pumping = asyncio.create_task(driver._pump(tasks))
            while driver.core.record.state is not JobState.STOPPING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert not [effect for effect in world.carried_out if isinstance(effect, fx.Kill)]
            assert driver.command(pb.CommandRequest(command="stop", reason="enough"))[0]
            while fx.Kill not in map(type, world.carried_out):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            driver.post(ev.EffectDone(_id_of(world, fx.Kill), {}))
            while fx.Finish not in map(type, world.carried_out):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            pumping.cancel()
        assert driver.core.record.finish_state is FinishState.STOPPED

    in_loop(scenario)


def test_a_job_that_has_ended_while_nothing_can_be_written_is_let_go_by_a_stop(stage: Stage) -> None:
    async def scenario() -> None:
        stage.driver.core.record.state = JobState.FINISHED
        stage.driver.core.record.finish_state = FinishState.COMPLETED
        ok, _ = stage.driver.command(pb.CommandRequest(command="stop"))
        assert not ok

        async def fails() -> None:
            raise OSError(28, "No space left on device")

        async with asyncio.timeout(5.0):
            assert not await stage.driver._writer.until_written(fails)

    in_loop(scenario)


def _id_of(world: World, kind: type) -> str:
    return next(effect.effect_id for effect in world.carried_out if isinstance(effect, kind))


def test_a_superseded_driver_does_not_try_again(stage: Stage) -> None:
    async def scenario() -> None:
        stage.world.failures = [FencedError("term 9 took over")]
        with pytest.raises(FencedError):
            await stage.apply(ev.DriverStarted(7))
        assert stage.world.carried_out == []

    in_loop(scenario)


async def pump_until(driver: Driver, holds: Callable[[], bool]) -> None:
    """Let the driver take events in until `holds`."""
    async with asyncio.timeout(20.0):
        pumping = asyncio.create_task(driver._pump(cast(Any, None)))
        while not holds() and not pumping.done():  # noqa: ASYNC110 - a driver announces nothing
            await asyncio.sleep(0.01)
        pumping.cancel()


@pytest.mark.parametrize(("late_s", "pauses"), [(0.9, []), (1.1, [1.1]), (60.0, [60.0])])
def test_effects_that_a_write_made_late_have_their_full_time(
    stage: Stage, late_s: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of a decision is late; that of the pause itself, and of a beat, is of no interest."""

    async def write(_entry: Any, *, must_store: bool) -> tuple[bool, float]:
        return True, late_s

    told: list[ev.Event] = []
    step = stage.driver.core.step

    def watched(event: ev.Event, now: float, waited_s: float = 0.0) -> list[fx.Effect]:
        told.append(event)
        return step(event, now, waited_s)

    monkeypatch.setattr(stage.driver._writer, "write", write)
    monkeypatch.setattr(stage.driver.core, "step", watched)
    beat = ev.NodeReport("n0", "a")
    posted: list[ev.Event] = [ev.DriverStarted(7), beat, ev.LogMatch("n0", "r", "gpu", "none", "line")]
    for event in posted:
        stage.driver.post(event)
    in_loop(lambda: pump_until(stage.driver, lambda: len(told) >= len(posted) + len(pauses)))
    found = [event.gap_s for event in told if isinstance(event, ev.DriverPaused)]
    assert found == pytest.approx(pauses)
    assert [event for event in told if not isinstance(event, ev.DriverPaused)] == posted


def test_a_slow_store_delays_decisions_and_does_not_stop_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every append takes more than a third of the silence bound."""
    core = stage.driver.core
    core.policy = dataclasses.replace(core.policy, silence_s=0.3)

    async def append(entry: Any) -> None:
        await asyncio.sleep(0.12)
        stage.world.written.append(type(entry.event).__name__)

    monkeypatch.setattr(stage.world, "append", append)
    stage.driver.post(ev.DriverStarted(7))
    for node in ("n0", "n1"):
        stage.driver.post(ev.NodeJoined(node, "a"))
    in_loop(lambda: pump_until(stage.driver, lambda: "NodeJoined" in stage.world.written[-1:]))
    assert [name for name in stage.world.written if name != ("record", None)][:2] == [
        "DriverStarted",
        "NodeJoined",
    ]


def test_a_report_that_waits_for_a_slow_write_keeps_its_node(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n1 is not silent: its report waits behind a write that takes longer than the silence bound."""
    core = stage.driver.core
    now = [1000.0]
    stage.driver._inbox = Inbox(lambda: now[0])
    stage.driver._pauses = PauseWatch(lambda: 0.0)
    monkeypatch.setattr(module.time, "time", lambda: now[0])

    async def append(entry: Any) -> None:
        if isinstance(entry.event, ev.LogMatch):
            now[0] += 1.0
            stage.driver.post(ev.NodeReport("n0", "a"))
            stage.driver.post(ev.NodeReport("n1", "a"))
            now[0] += 60.0
        stage.world.written.append(entry)

    monkeypatch.setattr(stage.world, "append", append)
    for event in (ev.DriverStarted(7), ev.NodeJoined("n0", "a"), ev.NodeJoined("n1", "a")):
        stage.driver.post(event)
    stage.driver.post(ev.LogMatch("n0", "r", "gpu", "none", "line"))

    def reports() -> list[Any]:
        written = [entry for entry in stage.world.written if entry != ("record", None)]
        return [entry for entry in written if isinstance(entry.event, ev.NodeReport)]

    in_loop(lambda: pump_until(stage.driver, lambda: len(reports()) >= 2))
    assert [entry.waited_s for entry in reports()] == [60.0, 60.0]
    assert {node.status for node in core.live.nodes.values()} == {NodeStatus.READY}


def test_a_driver_that_was_frozen_condemns_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    core, now = stage.driver.core, [1000.0]
    stage.driver._inbox = Inbox(lambda: now[0])
    stage.driver._pauses = PauseWatch(lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    told: list[ev.Event] = []

    async def append(entry: Any) -> None:
        told.append(entry.event)
        if entry.event == ev.NodeJoined("n1", "a"):
            now[0] += 40.0  # all of them are silent for longer than the bound of 30 s

    monkeypatch.setattr(stage.world, "append", append)
    for event in (ev.DriverStarted(7), ev.NodeJoined("n0", "a"), ev.NodeJoined("n1", "a")):
        stage.driver.post(event)
    stage.driver.post(ev.LogMatch("n0", "r", "gpu", "none", "line"))
    in_loop(lambda: pump_until(stage.driver, lambda: ev.LogMatch in map(type, told)))
    assert told[3:5] == [ev.DriverPaused(39.5), ev.LogMatch("n0", "r", "gpu", "none", "line")]
    assert {node.status for node in core.live.nodes.values()} == {NodeStatus.READY}


def test_the_end_is_the_end_when_nothing_waits(stage: Stage) -> None:
    async def scenario() -> None:
        record = stage.driver.core.record
        record.state, record.finish_state = JobState.FINISHED, FinishState.COMPLETED
        stage.driver.post(ev.ManualCommand(Command.SAVE, "something waits"))
        await stage.apply(ev.DriverStarted(7))
        assert not stage.driver.done.is_set()
        await stage.driver._inbox.next(0.0)
        await stage.apply(ev.DriverStarted(7))
        assert stage.driver.done.is_set()
        assert stage.driver._ended.is_set()

    in_loop(scenario)


def test_time_that_is_due_is_a_tick(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(stage.driver.core, "next_deadline", lambda: 1.0)  # long ago
        assert await stage.driver._next_event() == ev.Tick()
        monkeypatch.setattr(stage.driver.core, "next_deadline", lambda: None)
        waiting = asyncio.create_task(stage.driver._next_event())
        await asyncio.sleep(0)
        assert not waiting.done()
        stage.driver.post(ev.DriverStarted(8))
        assert await waiting == ev.DriverStarted(8)

    in_loop(scenario)


def test_commits_of_the_store_are_fed_and_a_store_that_is_away_is_said(stage: Stage, tmp_path: Path) -> None:
    commits = tmp_path / "checkpoints" / "commits"

    async def scenario() -> None:
        await stage.driver._scan_commits(5.0)
        commits.parent.mkdir()
        commits.write_text("a file")
        await stage.driver._scan_commits(5.0)

    in_loop(scenario)
    assert stage.posted == []

    async def away() -> None:
        async def call(_work: Any, _timeout_s: float) -> Any:
            raise UnreachableError("the checkpoint store did not answer within 5 s")

        stage.driver._store.call = call  # type: ignore[method-assign,assignment]
        await stage.driver._scan_commits(5.0)

    in_loop(away)
    (alert,) = stage.driver.board.document()["alerts"]
    assert (
        "checkpoints that no agent told of may be overlooked: the checkpoint store did not"
        in alert["message"]
    )

    async def found() -> None:
        async def call(_work: Any, _timeout_s: float) -> Any:
            return [Commit(5, 1), Commit(8, 1)]

        stage.driver._store.call = call  # type: ignore[method-assign,assignment]
        stage.driver.core.record.commits = [Commit(5, 1)]
        await stage.driver._scan_commits(5.0)

    in_loop(found)
    (event,) = stage.posted
    assert isinstance(event, ev.CommitDone)
    assert (event.step, event.attempt) == (8, 1)


def with_spec(job: TrainingJob, **changes: Any) -> str:
    mapping = json.loads(canonical_json(job))
    mapping["spec"] |= changes
    return json.dumps(mapping)


def test_changed_thresholds_of_a_local_job_are_adopted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, shared_machine=True)
    text = with_spec(job_of(), detection={"hang": {"steps": 7}})
    assert stage.driver.change_manifest(text) == (True, "accepted")
    (changed,) = stage.posted
    assert isinstance(changed, ev.SpecChanged)
    assert (changed.policy.hang_steps, changed.restart) == (7, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (with_spec(job_of(), steps=11), "it changes what ranks have read: stop the job, then run it again"),
        (
            with_spec(job_of(), health={"heartbeatSeconds": 7, "silenceSeconds": 30}),
            "it changes health.heartbeatSeconds from 5 to 7, which agents have read: stop the job",
        ),
        (with_spec(job_of(), nodes=0), "spec.nodes"),
        ("[" * 100_000, "the manifest is not JSON"),
        ("[]", "the manifest is not a JSON object"),
    ],
    ids=["restart", "heartbeat", "invalid", "nested", "list"],
)
def test_other_changes_of_a_local_job_are_refused(tmp_path: Path, text: str, message: str) -> None:
    stage = Stage(tmp_path, shared_machine=True)
    accepted, reason = stage.driver.change_manifest(text)
    assert not accepted
    assert message in reason
    assert stage.posted == []


def test_the_manifest_of_a_job_on_a_cluster_is_not_changed_from_here(stage: Stage) -> None:
    accepted, reason = stage.driver.change_manifest(with_spec(job_of(), suspend=True))
    assert (accepted, reason) == (False, "the manifest of a job on a cluster is changed with kubectl apply")
    assert stage.posted == []
