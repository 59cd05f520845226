"""An agent from its start to its end, with ranks, zygote and link that the test makes up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megascale.agent import agent as module
from megascale.agent.agent import RESTART_ME, Agent, is_supervised
from megascale.agent.config import AgentConfig
from megascale.agent.zygote_client import ZygoteError
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

HEAD = "apiVersion: megascale.io/v1alpha1\nkind: TrainingJob\nmetadata: {name: q}\nspec:\n  steps: 1\n"
COMMAND = (
    HEAD + '  runtime: {command: {args: [sleep, "60"]}}\n  health: {heartbeatSeconds: 2, orphanSeconds: 1}\n'
)
MEGATRON = HEAD + (
    "  runtime: {megatron: {model: {preset: tiny},"
    " data: {path: d, sequenceLength: 8, microBatch: 1, globalBatch: 4}}}\n"
)


class Ranks:
    """Ranks whose calls are noted; they have ended when `gone` is set."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.attempt, self.alive, self.exits = 4, [0, 1], list[pb.RankExit]()
        self.matches: list[pb.LogMatch] = []
        self.batches: list[pb.SegmentTimes] = []
        self.status = pb.RankStatus(rank=0)
        self.gone = asyncio.Event()

    async def kill(self, attempt: int, deadline_s: float) -> list[int]:
        self.calls.append(("kill", attempt, deadline_s))
        return []

    async def ended(self) -> None:
        await self.gone.wait()

    def request_save(self, attempt: int, *, then_stop: bool) -> None:
        self.calls.append(("save", attempt, then_stop))

    def snapshots(self, job: object) -> list[pb.Commit]:
        self.calls.append(("snapshots", job))
        return []

    def report(self) -> pb.Report:
        return pb.Report(ranks=[self.status])

    def log_matches(self) -> list[pb.LogMatch]:
        found, self.matches = self.matches, []
        return found

    def segments(self) -> pb.SegmentTimes | None:
        return self.batches.pop() if self.batches else None

    def last_lines(self, rank: int, count: int) -> list[str]:
        return [f"line {number} of {rank}" for number in range(50)][-count:]


class Zygote:
    """A zygote that comes up unless it is told otherwise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.raises: Exception | None = None

    async def ensure(self) -> None:
        self.calls.append("ensure")
        if self.raises is not None:
            raise self.raises

    async def close(self) -> None:
        self.calls.append("close")


class Stage:
    """An agent, what it is made of, and what it would send."""

    def __init__(self, folder: Path, manifest: str, **place: Any) -> None:
        run = RunDir(folder)
        run.job_file.write_text(manifest)
        self.context = LogContext("agent")
        config = AgentConfig(run, "n0", run.job_file, run.driver_file, run.token_file, **place)
        self.agent = Agent(config, self.context)
        self.ranks, self.zygote = Ranks(), Zygote()
        self.sent: list[pb.AgentMessage] = []
        self._grown = asyncio.Event()
        self.agent._ranks, self.agent._zygote = cast(Any, self.ranks), cast(Any, self.zygote)
        self.agent._link.send = self._take  # type: ignore[method-assign]

    def _take(self, message: pb.AgentMessage) -> None:
        self.sent.append(message)
        self._grown.set()

    @property
    def bodies(self) -> list[str | None]:
        return [message.WhichOneof("body") for message in self.sent]

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._grown.clear()
            await self._grown.wait()


Scenario = Callable[[Stage], Awaitable[None]]


def play(folder: Path, scenario: Scenario, manifest: str = COMMAND, **place: Any) -> None:
    async def main() -> None:
        stage = Stage(folder, manifest, **place)
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as stage.agent._group:
            await scenario(stage)
            for task in tuple(stage.agent._tasks):
                task.cancel()

    asyncio.run(main())


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes what an agent does to its whole process, and does not do it to the test's."""
    done: list[str] = []
    monkeypatch.setattr(module, "become_subreaper", lambda: done.append("subreaper"))
    monkeypatch.setattr(module.Reaper, "watch", lambda _self: done.append("watch"))
    monkeypatch.setattr(module.Reaper, "close", lambda _self: done.append("close"))
    return done


def run(folder: Path, scenario: Scenario, manifest: str = COMMAND, **place: Any) -> tuple[Stage, int]:
    """The exit code of an agent that runs beside `scenario`."""

    async def main() -> tuple[Stage, int]:
        stage = Stage(folder, manifest, **place)
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            running = group.create_task(stage.agent.run())
            await stage.until(lambda: "report" in stage.bodies)  # it serves
            await scenario(stage)
        return stage, running.result()

    return asyncio.run(main())


def test_an_agent_serves_until_it_is_let_go_and_leaves_nothing_behind(
    tmp_path: Path, process: list[str]
) -> None:
    async def scenario(stage: Stage) -> None:
        assert (stage.context.job, process) == ("q", ["subreaper", "watch"])
        assert stage.zygote.calls == ["ensure"]
        await stage.agent._handle_command(pb.DriverMessage(shutdown=pb.Shutdown(restart=True)))

    stage, code = run(tmp_path, scenario)
    assert code == RESTART_ME == 75
    assert stage.ranks.calls == [("kill", 4, 5.0)]
    assert stage.zygote.calls == ["ensure", "close"]
    assert process == ["subreaper", "watch", "close"]


def test_sigterm_ends_a_local_agent(tmp_path: Path, process: list[str]) -> None:
    async def scenario(_stage: Stage) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(tmp_path, scenario)[1] == 0
    assert process[-1] == "close"


def test_a_pod_copies_its_logs_to_the_end_and_is_no_orphan(tmp_path: Path, process: list[str]) -> None:
    calls: list[str] = []

    class Uploader:
        async def serve(self) -> None:
            calls.append("serve")
            await asyncio.Event().wait()

        async def close(self) -> None:
            calls.append("close")

    async def scenario(stage: Stage) -> None:
        assert stage.agent._log_uploader is not None
        assert stage.agent._log_uploader._uri == str(tmp_path / "checkpoints")
        assert stage.agent._log_uploader._name == "q-0-0"
        stage.agent._watch_for_orphanhood = None  # type: ignore[assignment,method-assign]
        stage.agent._log_uploader = cast(Any, Uploader())

    async def main() -> None:
        stage = Stage(tmp_path, COMMAND, pod="q-0-0")
        await scenario(stage)
        async with asyncio.timeout(20.0):
            running = asyncio.create_task(stage.agent.run())
            await stage.until(lambda: "report" in stage.bodies)
            stage.agent._leaving.set()
            assert await running == 0

    asyncio.run(main())
    assert calls == ["serve", "close"]
    assert process == ["subreaper", "watch", "close"]


def test_an_error_of_a_task_is_raised_as_it_is(tmp_path: Path, process: list[str]) -> None:
    async def scenario(stage: Stage) -> None:
        def broken() -> list[pb.LogMatch]:
            raise KeyError("a defect")

        stage.ranks.log_matches = broken  # type: ignore[method-assign]

    with pytest.raises(ExceptionGroup) as caught:
        run(tmp_path, scenario)
    (error,) = caught.value.exceptions
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, ExceptionGroup)
    assert process[-1] == "close"


@pytest.mark.parametrize("error", [ZygoteError("no memory"), OSError(12, "no memory")])
def test_an_agent_of_a_command_does_not_need_its_zygote_yet(tmp_path: Path, error: Exception) -> None:
    async def scenario(stage: Stage) -> None:
        stage.zygote.raises = error
        await stage.agent._prepare()
        (warming,) = stage.agent._tasks
        await warming
        assert stage.zygote.calls == ["ensure"]

    play(tmp_path, scenario)


@pytest.mark.parametrize("pod", ["", "q-0-0"])
def test_an_agent_of_the_engine_is_ready_with_its_zygote_and_in_a_pod_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pod: str
) -> None:
    prepared: list[tuple[str, int, int]] = []
    fake = SimpleNamespace(
        ensure_prepared=lambda data, size, most_bytes: prepared.append((data.path, size, most_bytes))
    )
    monkeypatch.setitem(sys.modules, "megascale.data.ensure", cast(Any, fake))

    async def scenario(stage: Stage) -> None:
        megatron = stage.agent._job.spec.runtime.megatron
        assert megatron is not None
        await stage.agent._prepare()
        assert stage.zygote.calls == ["ensure"]
        assert prepared == ([("d", megatron.model.vocab_size, 16 << 30)] if pod else [])
        stage.zygote.raises = ZygoteError("it did not come up")
        with pytest.raises(ZygoteError):
            await stage.agent._prepare()

    play(tmp_path, scenario, MEGATRON, pod=pod)


@pytest.mark.parametrize(("manifest", "arguments"), [(COMMAND, ["store"]), (MEGATRON, [])])
def test_only_the_engine_needs_a_zygote_that_forks_ranks(
    tmp_path: Path, manifest: str, arguments: list[str]
) -> None:
    async def main() -> None:
        run_dir = RunDir(tmp_path)
        run_dir.job_file.write_text(manifest)
        agent = Agent(AgentConfig.local(tmp_path, "n0"), LogContext("agent"))
        assert agent._zygote._arguments == arguments
        assert (agent._kernel_log, agent._log_uploader) == (None, None)

    asyncio.run(main())


def test_every_agent_has_another_incarnation_and_numbers_its_messages(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        other = Stage(tmp_path, COMMAND)
        stage.agent._link._highest_term = 6
        fences = [stage.agent._fenced(report=pb.Report()).fence for _ in range(2)]
        assert [(one.node, one.term, one.attempt, one.seq) for one in fences] == [
            ("n0", 6, 4, 1),
            ("n0", 6, 4, 2),
        ]
        assert len(fences[0].incarnation) == 8
        assert fences[0].incarnation != other.agent._fenced().fence.incarnation

    play(tmp_path, scenario)


def test_a_pod_prints_the_end_of_a_ranks_log_and_copies_logs_when_the_last_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(stage: Stage) -> None:
        uploader = stage.agent._log_uploader
        assert uploader is not None
        stage.agent._on_exit(pb.RankExit(rank=1, attempt=4))
        assert not uploader._due.is_set()
        stage.ranks.alive = []
        stage.agent._on_exit(pb.RankExit(rank=0, attempt=4))
        assert uploader._due.is_set()

    play(tmp_path, scenario, pod="q-0-0")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[rank 1] line 10 of 1", "[rank 1] line 11 of 1"]
    assert (len(lines), lines[-1]) == (80, "[rank 0] line 49 of 0")


def test_elsewhere_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(stage: Stage) -> None:
        stage.ranks.alive = []
        stage.agent._on_exit(pb.RankExit(rank=1, attempt=4))
        assert stage.bodies == ["report", "exit"]

    play(tmp_path, scenario)
    assert capsys.readouterr().out == ""


def test_a_pod_whose_ranks_do_not_save_in_time_ends_all_the_same(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        stage.agent._link.disconnected.clear()
        began = asyncio.get_running_loop().time()
        stage.agent._on_terminate()
        (notice,) = stage.sent
        assert abs(notice.hardware.at - time.time()) < 10.0
        await stage.agent._leaving.wait()
        assert 0.15 < asyncio.get_running_loop().time() - began < 10.0
        assert stage.ranks.calls == []

    play(tmp_path, scenario, pod="q-0-0", grace_s=0.2)


def test_a_pod_whose_ranks_have_saved_ends_without_asking_them_again(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        stage.agent._link.disconnected.clear()
        stage.ranks.gone.set()
        stage.agent._on_terminate()
        await stage.agent._leaving.wait()
        assert stage.ranks.calls == []

    play(tmp_path, scenario, pod="q-0-0", grace_s=15.0)


class Clock:
    """Time that passes only in `asyncio.sleep`; after `turns` of them the caller is cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
        self.now, self.slept, self._left = 1000.0, list[float](), turns
        monkeypatch.setattr(module.asyncio, "sleep", self.sleep)
        monkeypatch.setattr(module.time, "time", lambda: self.now)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self._left -= 1
        if self._left < 0:
            raise asyncio.CancelledError


async def report_changes(stage: Stage) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await stage.agent._report_changes()


def test_an_agent_without_news_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stage: Stage) -> None:
        clock = Clock(monkeypatch, turns=121)
        stage.agent._report_s = 0.5
        await report_changes(stage)
        assert set(clock.slept) == {0.05}
        # 6 s, a heartbeat of 2 s: the first at once
        assert stage.bodies == ["report"] * 4

    play(tmp_path, scenario)


def test_progress_is_reported_in_its_period_and_milestones_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        clock = Clock(monkeypatch, turns=121)
        stage.agent._report_s = 0.5
        counts: list[int] = []

        def report() -> pb.Report:
            stage.ranks.status.step += 1  # progress at every look
            return pb.Report(ranks=[stage.ranks.status])

        stage.ranks.report = report  # type: ignore[method-assign]
        await report_changes(stage)
        counts.append(len(stage.sent))
        assert 12 <= counts[0] <= 13  # 6 s, every 0.5 s
        for milestone in ("pid", "groups_at", "loaded_at", "first_step_at", "saved_step"):
            stage.sent.clear()
            clock._left = 2
            await report_changes(stage)
            first = len(stage.sent)
            stage.sent.clear()
            stage.agent._report_s = 1e6

            def changed(name: str = milestone) -> pb.Report:
                setattr(stage.ranks.status, name, getattr(stage.ranks.status, name) + 1)
                return pb.Report(ranks=[stage.ranks.status])

            stage.ranks.report = changed  # type: ignore[method-assign]
            clock._left = 3
            await report_changes(stage)
            assert (first, len(stage.sent)) == (1, 3), milestone
            stage.ranks.report = report  # type: ignore[method-assign]

    play(tmp_path, scenario)


def test_step_times_go_out_once_a_second_or_with_the_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        clock = Clock(monkeypatch, turns=121)
        found = []
        for report_s in (0.25, 3.0):
            stage.sent.clear()
            clock._left = 121
            stage.agent._report_s = report_s
            stage.ranks.batches = [pb.SegmentTimes(attempt=4)] * 100
            await report_changes(stage)
            found.append(stage.bodies.count("segments"))
        assert found == [7, 3]
        stage.sent.clear()
        stage.ranks.batches = []
        clock._left = 121
        await report_changes(stage)
        assert "segments" not in stage.bodies

    play(tmp_path, scenario)


def test_an_orphan_saves_waits_for_its_ranks_and_clears_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Any] = []
    monkeypatch.setattr(module, "remove_folders", lambda root, only: removed.append((root, only)))
    monkeypatch.setattr(module, "_SAVE_ON_ORPHAN_S", 0.01)
    threads: set[str] = set()

    def supervised(run: RunDir) -> bool:
        threads.add(threading.current_thread().name)
        return run.root != tmp_path

    monkeypatch.setattr(module, "is_supervised", supervised)

    async def scenario(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            nonlocal now
            slept.append(seconds)
            now += seconds
            if stage.agent._leaving.is_set():
                raise asyncio.CancelledError

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        timed = SimpleNamespace(
            time=lambda: now,
            create_future=loop.create_future,
            call_soon_threadsafe=loop.call_soon_threadsafe,
        )
        monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: timed)
        stage.agent._link.last_contact = now
        with pytest.raises(asyncio.CancelledError):
            await stage.agent._watch_for_orphanhood()
        assert slept == [0.2] * len(slept)
        assert 5 <= len(slept) <= 7  # orphanSeconds is 1, and one more look
        assert stage.ranks.calls == [("save", 4, True)]
        assert removed == [(tmp_path, "n0")]
        assert threads == {"the run folder"}

    play(tmp_path, scenario)


def test_an_agent_with_a_driver_or_a_supervisor_is_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised = False
    monkeypatch.setattr(module, "is_supervised", lambda _run: supervised)

    async def scenario(stage: Stage) -> None:
        nonlocal supervised
        left = 20

        async def sleep(_seconds: float) -> None:
            nonlocal left
            left -= 1
            stage.agent._link.last_contact -= 0.5
            if not left:
                raise asyncio.CancelledError

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        for connected in (True, False):
            supervised, left = not connected, 20
            if connected:
                stage.agent._link.disconnected.clear()
            else:
                stage.agent._link.disconnected.set()
            with pytest.raises(asyncio.CancelledError):
                await stage.agent._watch_for_orphanhood()
            assert stage.ranks.calls == []

    play(tmp_path, scenario)


def test_whoever_looks_for_a_supervisor_leaves_its_lock_alone(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.supervisor_lock.touch()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    assert not is_supervised(run_dir)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_an_agent_follows_the_kernel_log_it_is_given_by_the_rules_of_its_job(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.touch()
    rules = "  logRules: [{match: {pattern: a fan stopped}, class: host, action: replace_node}]\n"

    async def scenario(stage: Stage) -> None:
        with log.open("a") as handle:
            handle.write("3,1,1,-;a fan stopped\n")
        assert stage.agent._kernel_log is not None
        reporting = asyncio.create_task(stage.agent._watch_kernel_log(stage.agent._kernel_log))
        await stage.until(lambda: "hardware" in stage.bodies)
        reporting.cancel()
        (event,) = [message.hardware for message in stage.sent if message.HasField("hardware")]
        assert (event.text, event.action) == ("a fan stopped", "replace_node")

    play(tmp_path, scenario, COMMAND + rules, kernel_log=log)


def test_nothing_is_started_before_an_agent_serves(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path, COMMAND)
        work = stage.agent._warm_up()
        with pytest.raises(AssertionError, match="tasks are started while the agent serves"):
            stage.agent._start(work)
        work.close()

    asyncio.run(main())


def test_a_greeting_tells_of_the_snapshots_of_its_job(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        stage.agent._hello_messages()
        assert stage.ranks.calls == [("snapshots", stage.agent._job)]

    play(tmp_path, scenario)
