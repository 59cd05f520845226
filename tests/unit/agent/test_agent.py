"""What an agent does with orders, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import agent as module
from megascale.agent.agent import RESTART_ME, Agent, is_supervised
from megascale.agent.config import AgentConfig
from megascale.errors import UnreachableError
from megascale.job import TrainingJob
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: q}
spec:
  steps: 1
  runtime: {command: {args: [sleep, "60"]}}
  health: {heartbeatSeconds: 1, orphanSeconds: 1}
"""


class Outbox(list[pb.AgentMessage]):
    """What an agent would send."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = asyncio.Event()

    def take(self, message: pb.AgentMessage) -> None:
        self.append(message)
        self._grown.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._grown.clear()
            await self._grown.wait()


class FakeRanks:
    """Ranks that exist only in this list of calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.attempt, self.alive, self.exits = 4, [0, 1], []
        self.raises: BaseException | None = None
        self.gone = asyncio.Event()

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.raises is not None:
            raise self.raises

    async def host_store(self, attempt: int) -> int:
        self._note("host_store", attempt)
        return 29

    async def launch(self, term: int, order: pb.Launch) -> None:
        self._note("launch", term, order.attempt)

    async def kill(self, attempt: int, deadline_s: float) -> list[int]:
        self.calls.append(("kill", attempt, deadline_s))
        return [1]

    async def ended(self) -> None:
        await self.gone.wait()

    def request_save(self, attempt: int, *, then_stop: bool) -> None:
        self._note("save", attempt, then_stop)

    def snapshots(self, job: TrainingJob) -> list[pb.Commit]:
        assert job.metadata.name == "q"
        return [pb.Commit(step=8, attempt=4)]

    def report(self) -> pb.Report:
        return pb.Report(ranks=[pb.RankStatus(rank=0, step=len(self.calls))])

    def log_matches(self) -> list[pb.LogMatch]:
        return []

    def segments(self) -> None:
        return None

    async def evidence(self) -> list[pb.RankEvidence]:
        self._note("evidence")
        return [pb.RankEvidence(rank=0, process_state="S")]

    def last_lines(self, rank: int, count: int) -> list[str]:
        return [f"line of {rank}"][:count]


def play(
    folder: Path,
    scenario: Callable[[Agent, FakeRanks, Outbox], Awaitable[None]],
    pod: str = "",
) -> None:
    """`scenario` with an agent that serves, without a driver; what it would send is in the list."""

    async def main() -> None:
        run = RunDir(folder)
        run.job_file.write_text(MANIFEST)
        agent = Agent(
            AgentConfig(run, "n0", run.job_file, run.driver_file, run.token_file, pod=pod, grace_s=5.0),
            LogContext("agent"),
        )
        ranks, sent = FakeRanks(), Outbox()
        agent._ranks = cast(Any, ranks)
        agent._link.send = sent.take  # type: ignore[method-assign]
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as agent._group:
            await scenario(agent, ranks, sent)
            for task in agent._tasks:
                task.cancel()

    asyncio.run(main())


def order(**body: Any) -> pb.DriverMessage:
    return pb.DriverMessage(term=3, command_id="e-1", **body)


async def answers(agent: Agent, sent: Outbox, message: pb.DriverMessage) -> pb.CommandResult:
    await agent._handle_command(message)
    await sent.until(lambda: len(sent) > 0)
    fence = sent[0].fence
    assert (fence.node, fence.attempt, fence.incarnation) == ("n0", 4, agent._incarnation)
    return sent[0].result


ORDERS = [
    (order(host_store=pb.HostStore(attempt=4)), ("host_store", 4), {"store_port": 29}),
    (order(launch=pb.Launch(attempt=4)), ("launch", 3, 4), {}),
    (
        order(kill=pb.Kill(attempt=4, deadline_s=2.5)),
        ("kill", 4, pytest.approx(2.5, abs=1.0)),
        {"unreaped": [1], "snapshots": [pb.Commit(step=8, attempt=4)]},
    ),
    (order(save=pb.Save(attempt=4, then_stop=True)), ("save", 4, True), {}),
    (order(save=pb.Save(attempt=4)), ("save", 4, False), {}),
]


@pytest.mark.parametrize(
    ("message", "call", "fields"), ORDERS, ids=["host-store", "launch", "kill", "save-and-stop", "save"]
)
def test_an_order_is_carried_out_and_answered(
    tmp_path: Path, message: pb.DriverMessage, call: tuple[Any, ...], fields: dict[str, Any]
) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        found = await answers(agent, sent, message)
        assert found == pb.CommandResult(command_id="e-1", ok=True, **fields)
        assert ranks.calls == [call]

    play(tmp_path, scenario)


@pytest.mark.parametrize("error", [UnreachableError("no driver"), OSError(28, "no space"), TimeoutError()])
def test_an_order_that_cannot_be_carried_out_is_answered_with_the_reason(
    tmp_path: Path, error: Exception
) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        ranks.raises = error
        found = await answers(agent, sent, order(launch=pb.Launch(attempt=4)))
        assert not found.ok
        assert found.reason == f"{type(error).__name__}: {error}"

    play(tmp_path, scenario)


def test_an_order_that_is_not_known_is_refused(tmp_path: Path) -> None:
    async def scenario(agent: Agent, _ranks: FakeRanks, sent: Outbox) -> None:
        found = await answers(agent, sent, order())
        assert (found.ok, "does not know: None" in found.reason) == (False, True)

    play(tmp_path, scenario)


def test_stacks_are_sent_as_evidence(tmp_path: Path) -> None:
    async def scenario(agent: Agent, _ranks: FakeRanks, sent: Outbox) -> None:
        await answers(agent, sent, order(collect_evidence=pb.CollectEvidence(attempt=4)))
        wanted = pb.Evidence(command_id="e-1", ranks=[pb.RankEvidence(rank=0, process_state="S")])
        assert sent[0].evidence == wanted

    play(tmp_path, scenario)


def test_checks_and_measurements_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []

    async def wrong_numbers(deadline_s: float) -> str:
        asked.append((deadline_s,))
        return "a product differs"

    async def node_speed(duration_s: float, deadline_s: float) -> float:
        asked.append((duration_s, deadline_s))
        return 7.5

    async def no_speed(_duration_s: float, _deadline_s: float) -> float:
        raise OSError(12, "no memory")

    monkeypatch.setattr(module, "wrong_numbers", wrong_numbers)
    monkeypatch.setattr(module, "node_speed", node_speed)

    async def scenario(agent: Agent, _ranks: FakeRanks, sent: Outbox) -> None:
        found = await answers(agent, sent, order(check_numbers=pb.CheckNumbers(deadline_s=5.0)))
        assert (found.ok, found.wrong_numbers) == (True, "a product differs")
        sent.clear()
        measure = order(measure_speed=pb.MeasureSpeed(duration_s=2.0, deadline_s=9.0))
        found = await answers(agent, sent, measure)
        assert (found.ok, found.gemm_speed) == (True, 7.5)
        assert asked == [(5.0,), (2.0, 9.0)]
        sent.clear()
        monkeypatch.setattr(module, "node_speed", no_speed)
        found = await answers(agent, sent, measure)
        assert (found.ok, "no memory" in found.reason) == (False, True)

    play(tmp_path, scenario)


def test_orders_that_start_ranks_wait_for_each_other(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def host_store(_attempt: int) -> int:
            begun.set()
            await go.wait()
            ranks.calls.append("hosted")
            return 29

        ranks.host_store = host_store  # type: ignore[method-assign]
        await agent._handle_command(order(host_store=pb.HostStore(attempt=4)))
        await begun.wait()
        await agent._handle_command(order(launch=pb.Launch(attempt=4)))
        await asyncio.sleep(0)
        assert ranks.calls == []
        go.set()
        await sent.until(lambda: len(sent) == 2)
        assert ranks.calls == ["hosted", ("launch", 3, 4)]

    play(tmp_path, scenario)


@pytest.mark.parametrize(("restart", "code"), [(False, 0), (True, RESTART_ME)])
def test_the_driver_lets_an_agent_go(tmp_path: Path, restart: bool, code: int) -> None:
    async def scenario(agent: Agent, _ranks: FakeRanks, _sent: Outbox) -> None:
        assert not agent._leaving.is_set()
        await agent._handle_command(order(shutdown=pb.Shutdown(restart=restart)))
        assert agent._leaving.is_set()
        assert agent._exit_code == code

    play(tmp_path, scenario)


def test_the_driver_says_how_often_to_report(tmp_path: Path) -> None:
    async def scenario(agent: Agent, _ranks: FakeRanks, _sent: Outbox) -> None:
        await agent._handle_command(order(welcome=pb.Welcome(report_period_s=0.25)))
        assert agent._report_s == 0.25

    play(tmp_path, scenario)


def test_a_stream_begins_with_who_is_there_and_what_has_ended(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, _sent: Outbox) -> None:
        ranks.exits = [pb.RankExit(rank=1, attempt=4, exit_code=1)]
        hello, report, exit_ = agent._hello_messages()
        assert hello.hello == pb.Hello(
            pid=os.getpid(), ranks=[0, 1], snapshots=[pb.Commit(step=8, attempt=4)]
        )
        assert report.report == ranks.report()
        assert exit_.exit == ranks.exits[0]
        assert [one.fence.seq for one in (hello, report, exit_)] == sorted(
            {one.fence.seq for one in (hello, report, exit_)}
        )

    play(tmp_path, scenario)


def test_in_a_pod_the_notice_of_its_end_comes_before_the_exits(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        ranks.exits = [pb.RankExit(rank=1, attempt=4, exit_code=76)]
        agent._on_terminate()
        assert (sent[0].hardware.sign, sent[0].hardware.text) == ("drain", "its pod is being ended")
        bodies = [message.WhichOneof("body") for message in agent._hello_messages()]
        assert bodies == ["hello", "hardware", "report", "exit"]
        hello = agent._hello_messages()[0].hello
        assert (hello.host, hello.pod) == ("127.0.0.1", "q-0-0")

    play(tmp_path, scenario, pod="q-0-0")


def test_a_pod_that_ends_waits_until_its_ranks_have_saved(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, _sent: Outbox) -> None:
        agent._link.disconnected.clear()
        agent._on_terminate()
        await asyncio.sleep(0.01)
        assert ranks.calls == []  # the driver sees to it
        assert not agent._leaving.is_set()
        agent._link.disconnected.set()
        await asyncio.sleep(0.01)
        assert ranks.calls == [("save", 4, True)]
        assert not agent._leaving.is_set()
        ranks.gone.set()
        await agent._leaving.wait()

    play(tmp_path, scenario, pod="q-0-0")


@pytest.mark.parametrize(("pod", "alive"), [("", [0]), ("q-0-0", [])])
def test_elsewhere_and_without_ranks_it_ends_at_once(tmp_path: Path, pod: str, alive: list[int]) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, _sent: Outbox) -> None:
        ranks.alive = alive
        agent._on_terminate()
        assert agent._leaving.is_set()

    play(tmp_path, scenario, pod=pod)


def test_an_exit_is_told_after_how_far_the_rank_came(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        report = pb.RankExit(rank=1, attempt=4, exit_code=1)
        agent._on_exit(report)
        assert sent[0].report == ranks.report()
        assert sent[1].exit == report

    play(tmp_path, scenario)


def test_an_orphan_saves_and_leaves_and_a_supervised_agent_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised = True
    monkeypatch.setattr(module, "is_supervised", lambda _run: supervised)

    async def scenario(agent: Agent, ranks: FakeRanks, _sent: Outbox) -> None:
        nonlocal supervised
        ranks.gone.set()
        agent._start(agent._watch_for_orphanhood())
        await asyncio.sleep(1.5)
        assert ranks.calls == []
        supervised = False
        await agent._leaving.wait()
        assert ranks.calls == [("save", 4, True)]

    play(tmp_path, scenario)


def test_a_run_is_supervised_while_somebody_holds_its_lock(tmp_path: Path) -> None:
    import fcntl

    run = RunDir(tmp_path)
    assert not is_supervised(run)
    with run.supervisor_lock.open("w") as lock:
        assert not is_supervised(run)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_supervised(run)
    assert not is_supervised(run)


def test_changes_are_reported_at_once_and_progress_in_its_time(tmp_path: Path) -> None:
    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        status = pb.RankStatus(rank=0, pid=7, step=1)
        ranks.report = lambda: pb.Report(ranks=[status])  # type: ignore[method-assign]
        agent._report_s = 3600.0
        agent._start(agent._report_changes())
        await sent.until(lambda: len(sent) > 0)
        sent.clear()
        status.step = 2
        await asyncio.sleep(0.2)
        assert sent == []
        status.groups_at = 5.0
        await sent.until(lambda: len(sent) > 0)
        assert sent[0].report.ranks[0] == status

    play(tmp_path, scenario)


def test_what_logs_devices_and_steps_say_is_sent_on(tmp_path: Path) -> None:
    class Kernel:
        def new_events(self) -> list[pb.HardwareEvent]:
            return [pb.HardwareEvent(sign="xid", code=79)]

    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        ranks.log_matches = lambda: [pb.LogMatch(rank=0, rule="oom")]  # type: ignore[method-assign]
        ranks.segments = lambda: pb.SegmentTimes(attempt=4)  # type: ignore[method-assign,assignment]
        agent._start(agent._watch_kernel_log(cast(Any, Kernel())))
        agent._start(agent._report_changes())
        agent._start(agent._watch_logs())
        wanted = {"log", "hardware", "report", "segments"}
        await sent.until(lambda: wanted <= {message.WhichOneof("body") for message in sent})

    play(tmp_path, scenario)


def test_logs_that_cannot_be_read_hold_up_no_report(tmp_path: Path) -> None:
    go, began = threading.Event(), threading.Event()

    def hangs() -> list[pb.LogMatch]:
        began.set()
        go.wait(20.0)
        return []

    async def scenario(agent: Agent, ranks: FakeRanks, sent: Outbox) -> None:
        ranks.log_matches = hangs  # type: ignore[method-assign]
        agent._start(agent._watch_logs())
        await asyncio.to_thread(began.wait, 20.0)
        agent._start(agent._report_changes())
        await sent.until(lambda: any(message.WhichOneof("body") == "report" for message in sent))
        assert not go.is_set()
        go.set()

    play(tmp_path, scenario)


PROGRAM = """
import sys
from megascale.agent.agent import Agent
from megascale.agent.__main__ import main

async def broken(self):
    raise KeyError("a defect")

setattr(Agent, sys.argv.pop(1), broken)
sys.exit(main())
"""


@pytest.mark.parametrize("task", ["_report_changes", "_watch_logs", "_watch_for_orphanhood", "_prepare"])
def test_an_error_in_a_task_ends_the_agent_with_a_word_and_a_code(tmp_path: Path, task: str) -> None:
    RunDir(tmp_path).job_file.write_text(MANIFEST)
    command = [sys.executable, "-c", PROGRAM, task, str(tmp_path), "n0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "KeyError: 'a defect'" in ended.stderr


def test_lines_of_an_agent_in_a_pod_are_json_with_its_job_and_node(tmp_path: Path) -> None:
    RunDir(tmp_path).job_file.write_text(MANIFEST)
    command = [sys.executable, "-c", PROGRAM, "_report_changes", str(tmp_path), "n0", "--pod", "q-0-0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    found = [json.loads(line) for line in ended.stderr.splitlines()]
    assert {(line["component"], line["job"], line["node"]) for line in found} == {("agent", "q", "n0")}
    assert "KeyError: 'a defect'" in found[-1]["traceback"]


def test_sigterm_ends_an_agent_with_0(tmp_path: Path) -> None:
    RunDir(tmp_path).job_file.write_text(MANIFEST)
    command = [sys.executable, "-m", "megascale.agent", str(tmp_path), "n0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        while not _handles_sigterm(agent.pid):
            assert agent.poll() is None
        agent.send_signal(signal.SIGTERM)
        _, err = agent.communicate(timeout=60)
    assert (agent.returncode, err) == (0, "")


def _handles_sigterm(pid: int) -> bool:
    """Whether the process has set a handler for SIGTERM (SigCgt of /proc/PID/status)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
