"""The agent of one node: connects to the driver, executes its orders, and reports on the node's ranks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final

from megascale.agent.config import AgentConfig
from megascale.agent.gemm_benchmark import node_speed
from megascale.agent.kernel_log import KernelLog
from megascale.agent.link import Link, heartbeat_is_due
from megascale.agent.log_uploader import LogUploader
from megascale.agent.logtail import rules_of
from megascale.agent.manifests import Manifests
from megascale.agent.ranks import Ranks
from megascale.agent.reaper import Reaper
from megascale.agent.segments import PERIOD_S
from megascale.agent.selfcheck import wrong_numbers
from megascale.agent.zygote_client import Zygote, ZygoteError
from megascale.checkpoint.snapshot_folders import remove_folders
from megascale.errors import MegascaleError, first_error
from megascale.job import load_job
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir, is_locked
from megascale.offload import StorageThread
from megascale.prctl import become_subreaper
from megascale.rpc import megascale_pb2 as pb

_SAMPLE_S: Final = 0.05
_SAVE_ON_ORPHAN_S: Final = 60.0
_SHOWN_LINES: Final = 40
_LEAST_KILL_S: Final = 1.0
_IDS_READ_BYTES: Final = 16 << 30
"""Pods start together: each reads at most this much of a token file that was never checked."""
RESTART_ME: Final = 75
"""Exit code that asks the process or kubelet that started the agent to start it again."""


class Agent:
    """Runs until the driver releases it, or it gets SIGTERM.

    Outside a pod it also ends after `health.orphanSeconds` without a driver or a `megascale run`.
    """

    def __init__(self, config: AgentConfig, log_context: LogContext) -> None:
        self._config, self._node = config, config.node
        self._incarnation = secrets.token_hex(4)
        self._job = load_job(config.job_file)
        self._log_context = log_context
        log_context.job = self._job.metadata.name
        self._zygote = Zygote(engine=self._job.spec.runtime.megatron is not None)
        self._link = Link(config, self._hello_messages, self._handle_command)
        manifests = Manifests(config.job_file, self._link.fetch_revision)
        self._ranks = Ranks(config, self._zygote, manifests, self._on_exit)
        self._report_s = float(self._job.spec.health.heartbeat_seconds)
        self._leaving = asyncio.Event()
        self._ending: pb.HardwareEvent | None = None
        self._exit_code = 0
        self._order = asyncio.Lock()
        self._orders: dict[asyncio.Task[None], pb.DriverMessage] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaper = Reaper()
        self._kernel_log = KernelLog(config.kernel_log, rules_of(self._job)) if config.kernel_log else None
        self._log_uploader = LogUploader(config.run, self._store_uri(), config.pod) if config.pod else None
        self._seq = 0

    def _store_uri(self) -> str:
        return self._config.run.checkpoints(self._job.spec.checkpoint.uri)

    async def run(self) -> int:
        """Serve until the agent is told to end, then reap its ranks; returns the exit code.

        An error in any of the agent's tasks ends the agent and is raised here.
        """
        become_subreaper()
        self._reaper.watch()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_terminate)
        try:
            await self._serve()
        except BaseExceptionGroup as problems:
            raise first_error(problems) from problems
        finally:
            await self._close()
        return self._exit_code

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            await self._prepare()
            self._start(self._link.serve())
            self._start(self._report_changes())
            self._start(self._watch_logs())
            if self._kernel_log:
                self._start(self._watch_kernel_log(self._kernel_log))
            self._start(self._log_uploader.serve() if self._log_uploader else self._watch_for_orphanhood())
            await self._leaving.wait()
            for task in tuple(self._tasks):
                task.cancel()

    async def _close(self) -> None:
        await self._ranks.kill(self._ranks.attempt, deadline_s=5.0)
        await self._zygote.close()
        if self._log_uploader:
            await self._log_uploader.close()
        self._reaper.close()

    async def _prepare(self) -> None:
        """Do the slow preparations for a launch: load the engine and, in a pod, prepare the data.

        For a job that runs its own command the zygote, which only forks stores, starts in the background.
        """
        megatron = self._job.spec.runtime.megatron
        if megatron is None:
            self._start(self._warm_up())
            return
        if self._config.pod:
            from megascale.data.ensure import ensure_prepared

            await asyncio.to_thread(
                ensure_prepared, megatron.data, megatron.model.vocab_size, most_bytes=_IDS_READ_BYTES
            )
        await self._zygote.ensure()

    async def _warm_up(self) -> None:
        """Start the zygote in advance, because any node may have to host the store of a launch."""
        # Errors are ignored here: a launch tries again and reports the error to the driver.
        with contextlib.suppress(MegascaleError, OSError):
            await self._zygote.ensure()

    def _on_terminate(self) -> None:
        """Handle SIGTERM: end, or, in a pod with ranks, report a drain and let the ranks save first."""
        if not self._config.pod or not self._ranks.alive:
            self._leaving.set()
            return
        self._ending = pb.HardwareEvent(sign="drain", text="its pod is being ended", at=time.time())
        self._link.send(self._fenced(hardware=self._ending))
        self._start(self._save_before_the_end())

    async def _save_before_the_end(self) -> None:
        """Wait up to `grace_s` seconds for the ranks to end, then end the agent.

        A connected driver orders the whole job to save and replaces the node. Without one, the agent itself
        asks the ranks to save and stop.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.grace_s), asyncio.TaskGroup() as tasks:
                ended = tasks.create_task(self._ranks.ended())
                alone = tasks.create_task(self._link.disconnected.wait())
                await asyncio.wait((ended, alone), return_when=asyncio.FIRST_COMPLETED)
                alone.cancel()
                if not ended.done():
                    self._ranks.request_save(self._ranks.attempt, then_stop=True)
        self._leaving.set()

    def _fenced(self, **body: Any) -> pb.AgentMessage:  # noqa: ANN401 - one of the message bodies
        self._seq += 1
        fence = pb.Fence(
            node=self._node,
            incarnation=self._incarnation,
            term=self._link.highest_term,
            attempt=self._ranks.attempt,
            seq=self._seq,
        )
        return pb.AgentMessage(fence=fence, **body)

    def _hello_messages(self) -> list[pb.AgentMessage]:
        snapshots = self._ranks.snapshots(self._job)
        hello = pb.Hello(
            pid=os.getpid(),
            ranks=self._ranks.alive,
            snapshots=snapshots,
            host=self._config.host if self._config.pod else "",
            pod=self._config.pod,
        )
        greeting = [self._fenced(hello=hello)]
        if self._ending:
            # Before the exits, so that the driver does not blame the node for ranks that end with the pod.
            greeting.append(self._fenced(hardware=self._ending))
        greeting.append(self._fenced(report=self._ranks.report()))
        greeting += [self._fenced(exit=report) for report in self._ranks.exits]
        return greeting

    def _on_exit(self, report: pb.RankExit) -> None:
        # Send the rank's last step before its exit: the driver may end the job on the exit.
        self._link.send(self._fenced(report=self._ranks.report()))
        self._link.send(self._fenced(exit=report))
        if self._config.pod:
            # Print the rank's last lines to the pod's log, which can be read without access to the store.
            lines = self._ranks.last_lines(report.rank, _SHOWN_LINES)
            sys.stdout.writelines(f"[rank {report.rank}] {line}\n" for line in lines)
            sys.stdout.flush()
        if self._log_uploader and not self._ranks.alive:
            self._log_uploader.flush_soon()

    async def _handle_command(self, message: pb.DriverMessage) -> None:
        body = message.WhichOneof("body")
        if body == "welcome":
            self._report_s = message.welcome.report_period_s
        elif body == "shutdown":
            self._exit_code = RESTART_ME if message.shutdown.restart else 0
            self._leaving.set()
        elif body == "save":
            self._ranks.request_save(message.save.attempt, then_stop=message.save.then_stop)
            self._answer(message, ok=True)
        elif body == "collect_evidence":
            self._start(self._collect(message))
        elif body == "measure_speed":
            self._start(self._measure(message))
        else:
            if body == "kill":
                self._cancel_orders(message.kill)
            task = self._start(self._perform(message))
            self._orders[task] = message
            task.add_done_callback(self._orders.pop)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._group is None:
            raise AssertionError("tasks are started while the agent serves")
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancel_orders(self, kill: pb.Kill) -> None:
        """Cancel the orders whose result the kill makes void, so that it does not wait for them.

        A launch may wait minutes for a zygote that starts, but the driver takes a kill that is not answered
        in time for a node that cannot be trusted.
        """
        for task, message in self._orders.items():
            if self._is_void(message, kill):
                task.cancel()
                self._answer(message, ok=False, reason=f"attempt {kill.attempt} was killed meanwhile")

    def _is_void(self, message: pb.DriverMessage, kill: pb.Kill) -> bool:
        match message.WhichOneof("body"):
            case "host_store":
                return message.host_store.attempt <= kill.attempt
            case "launch":
                return message.launch.attempt <= kill.attempt
            case "check_numbers":
                return kill.attempt >= self._ranks.attempt
            case _:
                return False

    async def _perform(self, message: pb.DriverMessage) -> None:
        """Execute an order and answer it; runs orders one at a time, in the order in which they arrived."""
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        async with self._order:
            try:
                result = await self._carry_out(message, waited_s=loop.time() - arrived)
            except (MegascaleError, OSError) as error:
                self._answer(message, ok=False, reason=f"{type(error).__name__}: {error}")
                return
            self._answer(message, ok=True, **result)

    async def _carry_out(self, message: pb.DriverMessage, *, waited_s: float) -> dict[str, Any]:
        body = message.WhichOneof("body")
        if body == "host_store":
            return {"store_port": await self._ranks.host_store(message.host_store.attempt)}
        if body == "launch":
            self._log_context.attempt = message.launch.attempt
            await self._ranks.launch(message.term, message.launch)
            return {}
        if body == "kill":
            left_s = max(_LEAST_KILL_S, message.kill.deadline_s - waited_s)
            unreaped = await self._ranks.kill(message.kill.attempt, left_s)
            return {"unreaped": unreaped, "snapshots": self._ranks.snapshots(self._job)}
        if body == "check_numbers":
            return {"wrong_numbers": await wrong_numbers(message.check_numbers.deadline_s)}
        raise ZygoteError(f"the driver sent an order this agent does not know: {body}")

    async def _collect(self, message: pb.DriverMessage) -> None:
        found = await self._ranks.evidence()
        self._link.send(self._fenced(evidence=pb.Evidence(command_id=message.command_id, ranks=found)))

    async def _measure(self, message: pb.DriverMessage) -> None:
        """Measure the node's speed and answer; runs concurrently with other orders and the ranks."""
        asked = message.measure_speed
        try:
            speed = await node_speed(asked.duration_s, asked.deadline_s)
        except OSError as error:
            self._answer(message, ok=False, reason=str(error))
        else:
            self._answer(message, ok=True, gemm_speed=speed)

    def _answer(self, message: pb.DriverMessage, *, ok: bool, reason: str = "", **fields: Any) -> None:  # noqa: ANN401
        result = pb.CommandResult(command_id=message.command_id, ok=ok, reason=reason, **fields)
        self._link.send(self._fenced(result=result))

    async def _report_changes(self) -> None:
        """Send reports and segment times to the driver.

        An unchanged report is sent once per heartbeat period, a changed one at most every `_report_s`
        seconds, and one with a new milestone immediately.
        """
        heartbeat_s = float(self._job.spec.health.heartbeat_seconds)
        sent_at, sent, segments_at = 0.0, pb.Report(), 0.0
        while True:
            await asyncio.sleep(_SAMPLE_S)
            report, now = self._ranks.report(), time.time()
            period_s = self._report_s if report != sent else heartbeat_s
            if heartbeat_is_due(sent_at, now, period_s) or _milestones(report) != _milestones(sent):
                self._link.send(self._fenced(report=report))
                sent_at, sent = now, report
            if heartbeat_is_due(segments_at, now, max(PERIOD_S, self._report_s)):
                segments_at = now
                if segments := self._ranks.segments():
                    self._link.send(self._fenced(segments=segments))

    async def _watch_logs(self) -> None:
        """Send log matches to the driver.

        The logs are read and classified in a thread: a file system that hangs or a flood of lines delays log
        matches, and never heartbeats.
        """
        logs = StorageThread("the rank logs")
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for match in await logs.call(self._ranks.log_matches):
                self._link.send(self._fenced(log=match))

    async def _watch_kernel_log(self, kernel_log: KernelLog) -> None:
        """Send hardware events to the driver; the kernel's log, too, is read and classified in a thread."""
        thread = StorageThread("the kernel log")
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for event in await thread.call(kernel_log.new_events):
                self._link.send(self._fenced(hardware=event))

    async def _watch_for_orphanhood(self) -> None:
        """Save and end after `orphanSeconds` in which there was neither a driver nor a `megascale run`."""
        loop, files = asyncio.get_running_loop(), StorageThread("the run folder")
        orphan_s = float(self._job.spec.health.orphan_seconds)
        while True:
            await asyncio.sleep(min(orphan_s, 5.0) / 5.0)
            if self._link.connected or await files.call(lambda: is_supervised(self._config.run)):
                self._link.last_contact = loop.time()
            if loop.time() - self._link.last_contact < orphan_s:
                continue
            self._ranks.request_save(self._ranks.attempt, then_stop=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ranks.ended(), _SAVE_ON_ORPHAN_S)
            remove_folders(self._config.run.root, only=self._node)
            self._leaving.set()


def is_supervised(run: RunDir) -> bool:
    """Return whether a `megascale run` holds the run's lock, and so restarts the driver when it ends."""
    return is_locked(run.supervisor_lock)


def _milestones(report: pb.Report) -> list[tuple[float, ...]]:
    return [
        (rank.pid, rank.groups_at, rank.loaded_at, rank.first_step_at, rank.saved_step)
        for rank in report.ranks
    ]
