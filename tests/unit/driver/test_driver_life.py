"""A driver from taking over the record to the summary; record, log and fleet are in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.core.machine import Core
from megascale.core.state.record import JobState
from megascale.driver import __main__ as main_module
from megascale.driver import driver as module
from megascale.driver.driver import Driver
from megascale.driver.links import AgentLink
from megascale.driver.listener import LocalListener
from megascale.driver.policy import needs_restart, policy_of
from megascale.driver.ports import BackgroundService, DriverPorts
from megascale.driver.record import Claim
from megascale.driver.wire import shutdown_order
from megascale.errors import FencedError, UnreachableError
from megascale.fleet.base import SlotEvent
from megascale.fleet.injected import InjectedFleet
from megascale.fleet.local import LocalFleet
from megascale.job import TrainingJob, canonical_json, from_mapping, revision_of
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import bearer
from megascale.rpc.megascale_pb2_grpc import DriverStub

HEAD = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}


def job_of(**spec: Any) -> TrainingJob:
    return from_mapping(HEAD | {"spec": {"steps": 10, "runtime": {"command": {"args": ["true"]}}} | spec})


JOB = job_of()


class World:
    """What a driver needs of its environment; `calls` are in the order in which they came."""

    is_full = False

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.events: list[ev.Event] = []
        self.on_event: Callable[[SlotEvent], None] | None = None
        self.raises: Exception | None = None
        self.claimed = Claim(7, None)
        self.confirmed = 0
        self.taken_over: FencedError | None = None

    async def confirm(self) -> None:
        self.confirmed += 1
        if self.taken_over is not None:
            raise self.taken_over

    async def claim(self) -> Claim:
        return self.claimed

    async def begin(self, header: Any, term: int) -> None:
        self.calls.append(("begin", header.job, header.policy, header.snapshot, term))

    async def append(self, entry: Any) -> None:
        self.events.append(entry.event)

    async def write(self, _snapshot: Any, _revisions: Any) -> None:
        """The record is of no interest here."""

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        self.calls.append("fleet started")
        self.on_event = on_event

    async def acquire(self, _effect_id: str, count: int, avoid: tuple[str, ...]) -> None:
        self.calls.append(("acquire", count, avoid))

    async def release(self, node: str) -> None:
        self.calls.append(("release", node))

    def labels(self, node: str) -> dict[str, str]:
        return {"slot": f"of {node}"}

    async def close(self) -> None:
        self.calls.append("closed")
        if self.raises is not None:
            raise self.raises


class Stage:
    """A driver that serves on a real port."""

    def __init__(
        self, folder: Path, world: World, services: tuple[BackgroundService, ...] = (), **ports: Any
    ) -> None:
        self.run, self.world, port = RunDir(folder), world, cast(Any, world)
        self.ports = DriverPorts(port, port, LocalListener(self.run), port, services, **ports)

    async def take_over(self, job: TrainingJob = JOB) -> Driver:
        return await Driver.take_over(self.run, job, self.ports)


def ended(job: TrainingJob, *, revisions: tuple[TrainingJob, ...] = ()) -> Claim:
    """The record of a job that is complete."""
    core = Core(policy_of(job))
    core.record.state, core.record.finish_state = JobState.FINISHED, FinishState.COMPLETED
    core.record.spec.running = revision_of(job)
    return Claim(8, core.snapshot(), {revision_of(one): canonical_json(one) for one in revisions})


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - bounded by the caller
        await asyncio.sleep(0.01)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30.0):
            await scenario()

    asyncio.run(main())


def test_a_driver_listens_before_it_asks_for_nodes_and_ends_with_a_summary(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path, World())
        stage.run.summary_file.write_text("of the life before")
        driver = await stage.take_over()
        assert stage.world.calls == [("begin", "j", policy_of(JOB), None, 7)]
        running = asyncio.create_task(driver.run())
        await until(lambda: ("acquire", 1, ()) in stage.world.calls)
        assert stage.world.calls[1] == "fleet started"
        assert not stage.run.summary_file.exists()
        address = json.loads(stage.run.driver_file.read_text())
        assert address["term"] == driver.term == 7
        async with grpc.aio.insecure_channel(address["endpoint"]) as channel:
            request = pb.CommandRequest(command="stop", reason="enough", by="ann")
            token = bearer(stage.run.ensure_token())
            reply = await DriverStub(channel).Command(request, metadata=token)  # type: ignore[no-untyped-call]
            assert reply.ok
            await running
        assert stage.world.events[:2] == [
            ev.DriverStarted(7),
            ev.SpecChanged(policy_of(JOB), revision_of(JOB), restart=False),
        ]
        assert driver.done.is_set()
        # the fleet before the summary, then log and record
        assert stage.world.calls[-3:] == ["closed"] * 3
        summary = json.loads(stage.run.summary_file.read_text())
        assert (summary["job"], summary["state"], summary["steps"]) == ("j", "stopped", 10)

    play(scenario)


def test_an_ended_job_stays_so_where_starting_does_not_reopen(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.claimed = ended(JOB, revisions=(JOB,))
        driver = await Stage(tmp_path, world).take_over()
        await driver.run()
        assert world.events == [ev.DriverStarted(8)]
        assert driver.done.is_set()
        assert ("acquire", 1, ()) not in world.calls

    play(scenario)


def test_an_ended_job_starts_again_where_starting_reopens(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.claimed = ended(JOB, revisions=(JOB,))
        driver = await Stage(tmp_path, world, reopens=True).take_over()
        running = asyncio.create_task(driver.run())
        await until(lambda: ("acquire", 1, ()) in world.calls)
        assert world.events[:2] == [
            ev.DriverStarted(8),
            ev.ManualCommand(Command.REOPEN, "the job was started again"),
        ]
        driver.post(ev.ManualCommand(Command.STOP, "enough"))
        await running

    play(scenario)


def test_a_driver_that_meets_a_higher_term_stops_if_the_record_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONFIRM_S", 0.01)

    async def scenario() -> None:
        world = World()
        driver = await Stage(tmp_path, world).take_over()
        running = asyncio.create_task(driver.run())
        await until(lambda: ("acquire", 1, ()) in world.calls)
        link = AgentLink("n0", "a", "address")
        message = pb.AgentMessage(fence=pb.Fence(node="n0", term=2**63), report=pb.Report())
        driver.receive(link, message)
        await until(lambda: world.confirmed == 1)
        (alert,) = driver.board.document()["alerts"]
        assert "it has seen a driver of term 9223372036854775808" in alert["message"]
        world.taken_over = FencedError("a driver of term 8 took over from 7")
        driver.receive(link, message)
        with pytest.raises(FencedError, match="a driver of term 8 took over from 7"):
            await running
        assert world.calls[-2:] == ["closed"] * 2
        assert not driver.done.is_set()

    play(scenario)


def test_services_run_beside_the_driver_and_end_with_it(tmp_path: Path) -> None:
    class Beside:
        driver: Any = None
        ended = False

        async def run(self, driver: Any) -> None:
            self.driver = driver
            try:
                await asyncio.Event().wait()
            finally:
                self.ended = True

    async def scenario() -> None:
        beside = Beside()
        driver = await Stage(tmp_path, World(), (cast(Any, beside),)).take_over()
        running = asyncio.create_task(driver.run())
        await until(lambda: beside.driver is driver)
        driver.post(ev.ManualCommand(Command.STOP, "enough"))
        await running
        assert beside.ended

    play(scenario)


def test_a_driver_that_cannot_open_closes_log_and_record(tmp_path: Path) -> None:
    class Refuses(World):
        async def start(self, _on_event: Callable[[SlotEvent], None]) -> None:
            raise UnreachableError("the cluster is away")

    async def scenario() -> None:
        world = Refuses()
        driver = await Stage(tmp_path, world).take_over()
        with pytest.raises(UnreachableError, match="the cluster is away"):
            await driver.run()
        assert world.calls[-2:] == ["closed"] * 2

    play(scenario)


def test_the_fleet_tells_the_driver_of_its_slots(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        driver = await Stage(tmp_path, world).take_over()
        running = asyncio.create_task(driver.run())
        await until(lambda: ("acquire", 1, ()) in world.calls)
        assert world.on_event is not None
        world.on_event(SlotEvent("n0", "drained", 5.0, leaving=True))
        notice = ev.HardwareEvent("n0", "drain", text="drained", at=5.0)
        await until(lambda: notice in world.events)
        driver.post(ev.ManualCommand(Command.STOP, "enough"))
        await running

    play(scenario)


def test_there_is_a_summary_even_if_the_fleet_does_not_let_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World()
        world.raises = UnreachableError("the cluster is away")
        stage = Stage(tmp_path, world)
        line = {"step": 3, "attempt": 1, "loss": 1.5, "stepSeconds": 0.5, "tokens": 30}
        stage.run.metrics_file.write_text(json.dumps(line) + "\n")
        driver = await stage.take_over()
        with pytest.raises(UnreachableError):
            await driver._finish()
        text = stage.run.summary_file.read_text()
        assert (json.loads(text)["step"], json.loads(text)["tokensPerSecond"]) == (3, 20.0)
        assert text.startswith('{\n  "job": "j",')

    play(scenario)


def test_step_records_that_cannot_be_read_leave_a_summary_without_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def hangs(_metrics: Path) -> dict[int, Any]:
        go.wait(20.0)
        return {}

    def fails(_metrics: Path) -> dict[int, Any]:
        raise OSError(5, "Input/output error")

    async def scenario() -> None:
        driver = await Stage(tmp_path, World()).take_over()
        files = module.StorageThread("the run folder")
        monkeypatch.setattr(module, "counted_steps", fails)
        assert await driver._counted_steps(files) == {}
        monkeypatch.setattr(module, "counted_steps", hangs)
        monkeypatch.setattr(module, "_METRICS_S", 0.05)
        try:
            assert await driver._counted_steps(files) == {}
        finally:
            go.set()
        assert [one["message"] for one in driver.board.document()["alerts"]] == [
            "the summary has no rates: [Errno 5] Input/output error",
            "the summary has no rates: the run folder did not answer within 0.05 s",
        ]

    play(scenario)


def test_local_nodes_are_bounded_and_tell_of_injected_ends_where_there_are_faults(tmp_path: Path) -> None:
    run, policy = RunDir(tmp_path), policy_of(job_of(nodes=4, spareNodes=3), shared_machine=True)
    plain = main_module.fleet_of(run, job_of(), lambda: policy)
    assert type(plain) is LocalFleet
    assert (plain._run, plain._limit()) == (run, 4 + 3 + 2)
    policy = policy_of(job_of(nodes=4000), shared_machine=True)  # a changed manifest
    assert plain._limit() == 4000 + 1 + 2
    job = job_of(faults=[{"kind": "killRank", "rank": 0, "step": 3}])
    faulty = main_module.fleet_of(run, job, lambda: policy_of(job, shared_machine=True))
    assert isinstance(faulty, InjectedFleet)
    assert (faulty._run, faulty._limit()) == (run, 1 + 1 + 2)


def test_the_driver_of_a_local_run_takes_everything_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    class Taken:
        async def run(self) -> None:
            taken.append("ran")

    async def take_over(run: RunDir, job: TrainingJob, ports: DriverPorts) -> Taken:
        taken.extend((run, job, ports))
        return Taken()

    monkeypatch.setattr(main_module.Driver, "take_over", take_over)
    monkeypatch.setattr(main_module.sys, "argv", ["driver", str(tmp_path)])
    configured: list[tuple[LogContext, bool]] = []
    monkeypatch.setattr(
        main_module, "configure_logs", lambda context, as_json: configured.append((context, as_json))
    )
    RunDir(tmp_path).job_file.write_text(canonical_json(JOB))
    assert main_module.main() == 0
    run, job, ports, ran = taken
    assert (run, job, ran) == (RunDir(tmp_path), JOB, "ran")
    assert (ports.shared_machine, ports.reopens) == (True, True)
    for part in (ports.record, ports.fleet, ports.listener):
        assert part._run == run
    assert ports.record._job == "j"
    ((context, as_json),) = configured
    assert ports.log_context is context
    assert (context.component, context.job, as_json) == ("driver", "j", False)
    asyncio.run(ports.log.close())
    assert run.events_file.exists()


def test_a_driver_that_cannot_go_on_says_why_and_ends_with_the_code_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main_module.sys, "argv", ["driver", str(tmp_path)])
    monkeypatch.setattr(main_module, "configure_logs", lambda *_arguments, **_fields: None)

    async def fenced(*_arguments: Any) -> None:
        raise FencedError("another driver holds the record")

    monkeypatch.setattr(main_module, "_serve", fenced)
    assert main_module.main() == FencedError.exit_code != 0
    assert caplog.messages == ["another driver holds the record"]


@pytest.mark.parametrize(("spares", "report_s"), [(0, 0.6), (50, 0.8), (5000, 5.0)])
def test_an_agent_is_told_the_report_period_of_all_nodes_and_told_to_the_core_with_its_slot(
    tmp_path: Path, spares: int, report_s: float
) -> None:
    async def scenario() -> None:
        driver = await Stage(tmp_path, World()).take_over(
            job_of(nodes=100, spareNodes=spares, health={"heartbeatSeconds": 5})
        )
        link = AgentLink("n3", "a", "address")
        fence = pb.Fence(node="n3", incarnation="a", term=7, attempt=0)
        assert driver.attach(link, pb.AgentMessage(fence=fence, hello=pb.Hello(pid=1)))
        message = await link.outgoing()
        assert message is not None
        assert (message.term, message.welcome.report_period_s) == (7, pytest.approx(report_s))
        assert await driver._inbox.next(0.0) == ev.NodeJoined("n3", "a", 0, (), {"slot": "of n3"})

    play(scenario)


@pytest.mark.parametrize("uri", [None, "elsewhere"])
def test_commits_are_looked_for_where_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    looked: list[str] = []
    where = str(tmp_path / uri) if uri else None

    class Store:
        def __init__(self, uri: str) -> None:
            self._uri = uri

        def commits(self) -> list[Commit]:
            looked.append(self._uri)
            return [Commit(5, 1)]

    monkeypatch.setattr(module, "CheckpointStore", Store)
    monkeypatch.setattr(module.time, "time", lambda: 50.0)

    async def scenario() -> None:
        driver = await Stage(tmp_path, World()).take_over(job_of(checkpoint={"uri": where} if where else {}))
        await driver._scan_commits(5.0)
        assert looked == [where or str(tmp_path / "checkpoints")]
        assert await driver._inbox.next(0.0) == ev.CommitDone(5, 1, 50.0)

    play(scenario)


def test_an_agent_that_is_let_go_is_told_why_and_whether_to_come_back() -> None:
    stay = shutdown_order(3, "the job is complete")
    assert stay == pb.DriverMessage(term=3, shutdown=pb.Shutdown(reason="the job is complete"))
    assert shutdown_order(3, "a new version", restart=True).shutdown.restart


@pytest.mark.parametrize(
    "change",
    [{"uri": "elsewhere"}, {"everySteps": 7}, {"keep": 9}, {"memory": {"enabled": False}}],
    ids=lambda change: next(iter(change)),
)
def test_ranks_have_read_where_and_when_to_save(change: dict[str, Any]) -> None:
    assert needs_restart(JOB, job_of(checkpoint=change))
    assert not needs_restart(JOB, job_of(checkpoint={"saveSeconds": 77}))
