"""The rank processes of one node: launches and kills them, and collects progress, exits and evidence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megascale.agent.command import command_environment, kill_strays, spawn
from megascale.agent.config import AgentConfig
from megascale.agent.host_note import HostNotes
from megascale.agent.injected import Amend, amendment_of, leave_as_it_is
from megascale.agent.logtail import CpuBudget, LineMatch, LogTail, rules_of
from megascale.agent.manifests import Manifests
from megascale.agent.processes import Child, Exit, helpers, kill_all, process_state, settled
from megascale.agent.ranklog import RankLog
from megascale.agent.segments import SegmentFeed
from megascale.agent.stacks import stack_of
from megascale.agent.strays import Strays
from megascale.agent.zygote import write_launch
from megascale.agent.zygote_client import Zygote, ZygoteError
from megascale.checkpoint.snapshot import held
from megascale.checkpoint.snapshot_folders import make_folders, snapshot_file
from megascale.core.contract.lineage import Commit
from megascale.core.rules import prefilter_of
from megascale.data.loader_files import folder as loader_folder
from megascale.data.loader_files import remove_ownerless
from megascale.engine.context import RankLaunch
from megascale.errors import FencedError, MegascaleError
from megascale.job import TrainingJob
from megascale.network.profile import FLIGHT_RECORDS, explain
from megascale.observe.rankfile import Control, Phase, RankFile, RankRecord
from megascale.rpc import megascale_pb2 as pb

_TAIL_LINES: Final = 8
_REAP_S: Final = 5.0
_SIGNAL_CODES: Final = 128
"""A shell leaves with 128 + the number of the signal that ended its program."""
_LOG_CPU_SHARE: Final = 0.25
_FLOOD_S: Final = 60.0
_JOIN_S: Final = 1.0
_STORE_ERROR: Final = "DistStoreError"
"""What ranks raise that lose their store; the driver restarts them and blames no node."""


class LateRanksError(MegascaleError):
    """Ranks of an older attempt are not reaped, e.g. because a device or file system holds them."""


@dataclass(slots=True, eq=False)
class Rank:
    """One rank process of the current attempt."""

    launch: RankLaunch
    child: Child
    file: RankFile
    log: RankLog


class Ranks:
    """The rank processes of a node.

    Args:
        on_exit: called with the report of every exit that this agent did not cause.

    Attributes:
        attempt: the attempt of the newest launch, 0 before any.
        exits: the exit reports of that attempt.
    """

    def __init__(
        self,
        config: AgentConfig,
        zygote: Zygote,
        manifests: Manifests,
        on_exit: Callable[[pb.RankExit], None],
    ) -> None:
        self.attempt = 0
        self.exits: list[pb.RankExit] = []
        self._config, self._run, self._zygote = config, config.run, zygote
        self._manifests, self._on_exit = manifests, on_exit
        self._launched = self._killed = 0
        self._ranks: dict[int, Rank] = {}
        self._commands: set[Path] = set()
        self._segments = SegmentFeed()
        self._store: Child | None = None
        self._store_attempt = 0
        self._store_port = 0
        self._amend: Amend = leave_as_it_is
        self._host_notes = HostNotes(config.kernel_log)
        self._strays = Strays(self._own_children)
        self._log_cpu = CpuBudget(_LOG_CPU_SHARE)
        self._flood_at = -math.inf
        self._to_unix = time.time() - time.monotonic()

    @property
    def alive(self) -> list[int]:
        return sorted(rank for rank, entry in self._ranks.items() if not entry.child.ended.is_set())

    async def host_store(self, attempt: int) -> int:
        """Start the key-value store of `attempt`, unless it runs already, and return its port.

        Raises:
            ZygoteError: the zygote cannot fork the store.
            FencedError: this node has ranks or a store of a later attempt.
        """
        newest = max(self.attempt, self._store_attempt)
        if attempt < newest:
            raise FencedError(f"a store of attempt {attempt} was asked for after attempt {newest}")
        if self._store is None or self._store_attempt != attempt or self._store.ended.is_set():
            await self._drop_store()
            pid, port = await self._zygote.fork_store(self._config.host)
            self._store = Child(pid, lambda child, how: self._store_ended(child, attempt, how))
            self._store.watch()
            self._store_attempt, self._store_port = attempt, port
        return self._store_port

    def _store_ended(self, store: Child, attempt: int, how: Exit) -> None:
        """Report a store that ended although ranks need it, as the failure of this node's first rank.

        Until its first step a rank may wait for the others through the store, up to the timeout of its
        collectives. Later it does not need the store.
        """
        waiting = [
            entry
            for entry in self._ranks.values()
            if not entry.child.ended.is_set() and not entry.file.read().first_step_at
        ]
        if store.killed or attempt != self.attempt or not waiting:
            return
        ended = f"exited with code {how.code}" if how.signal is None else f"was killed by signal {how.signal}"
        message = f"the store of attempt {attempt} (pid {store.pid}) {ended} before the first step"
        report = self._exit_report(waiting[0], Exit(code=1, signal=None))
        report.exit_report = json.dumps({"type": _STORE_ERROR, "message": message})
        self.exits.append(report)
        self._on_exit(report)

    async def launch(self, term: int, order: pb.Launch) -> None:
        """Kill older ranks and start this node's ranks of an attempt; a repeated order changes nothing.

        If it fails, none of the attempt's ranks run, and a repeated order tries again. If it is cancelled,
        ranks may run: the caller kills the attempt.

        Raises:
            ZygoteError: the zygote cannot fork the ranks, or the attempt's store, if it is here, has ended.
            FencedError: a later attempt was launched, or this one was killed.
            LateRanksError: older ranks could not be reaped.
            InputError, UnreachableError: the manifest cannot be read, or not fetched from the driver.
        """
        if order.attempt == self._launched:
            return
        newest = max(self.attempt, self._killed + 1)
        if order.attempt < newest:
            raise FencedError(f"attempt {order.attempt} is over: attempt {newest} is the next of this node")
        job = await self._manifests.get(order.revision)
        await asyncio.to_thread(prefilter_of, rules_of(job))
        if self._store is not None and self._store_attempt == order.attempt and self._store.ended.is_set():
            raise ZygoteError(f"the store of attempt {order.attempt} ended before the ranks were started")
        await self._make_room()
        self.attempt, self.exits = order.attempt, []
        self._amend = amendment_of(job.spec.faults, self._run)
        self._host_notes.begin()
        try:
            for folder in (self._run.logs(order.attempt), self._run.root / FLIGHT_RECORDS):
                folder.mkdir(parents=True, exist_ok=True)
            for local_rank in range(job.spec.ranks_per_node):
                await self._start(self._launch_of(term, order, job, local_rank), job)
        except (MegascaleError, OSError):
            await self._make_room()
            raise
        self._launched = order.attempt

    async def _make_room(self) -> None:
        """Kill the ranks of all attempts; raises LateRanksError if some are not reaped in 5 seconds."""
        late = await self._end_ranks(_REAP_S)
        if late:
            names = ", ".join(f"{entry.launch.rank} (pid {entry.child.pid})" for entry in late)
            raise LateRanksError(
                f"ranks of attempt {late[0].launch.attempt} were not reaped {_REAP_S:g} s after SIGKILL: "
                f"{names}"
            )

    def _launch_of(self, term: int, order: pb.Launch, job: TrainingJob, local_rank: int) -> RankLaunch:
        per_node = job.spec.ranks_per_node
        return RankLaunch(
            job=job.metadata.name,
            spec=job.model_dump(by_alias=True, mode="json"),
            term=term,
            attempt=order.attempt,
            rank=order.node_rank * per_node + local_rank,
            world_size=order.nodes * per_node,
            local_rank=local_rank,
            local_world_size=per_node,
            node=self._config.node,
            node_rank=order.node_rank,
            store_host=order.store_host,
            store_port=order.store_port,
            run_dir=self._run.root,
            rank_file=self._run.rank_file(self._config.node, local_rank),
            resume=_commit(order.resume) if order.HasField("resume") else None,
            lineage={
                entry.attempt: _commit(entry.resumed_from) if entry.HasField("resumed_from") else None
                for entry in order.lineage
            },
            tier=order.tier or "durable",
            save_every_steps=order.save_every_steps,
            snapshot_folders=self._snapshot_folders(job),
            interface=self._config.interface,
        )

    def _snapshot_folders(self, job: TrainingJob) -> tuple[Path, ...]:
        if not job.spec.checkpoint.memory.enabled or job.spec.runtime.megatron is None:
            return ()
        return make_folders(self._run.root, self._config.node, self._config.snapshot_root)

    def snapshots(self, job: TrainingJob) -> list[pb.Commit]:
        """Return the snapshots in memory that all ranks of this node have, whichever agent launched them."""
        folders = self._snapshot_folders(job)
        found = {
            commit
            for folder in folders
            for commit in held([snapshot_file(folder, local) for local in range(job.spec.ranks_per_node)])
        }
        return [pb.Commit(step=commit.step, attempt=commit.attempt) for commit in sorted(found)]

    async def _start(self, launch: RankLaunch, job: TrainingJob) -> None:
        record = RankRecord(term=launch.term, attempt=launch.attempt, rank=launch.rank)
        file = RankFile.create(launch.rank_file, record)
        log = RankLog(self._run.rank_log(launch.attempt, launch.rank), LogTail(rules_of(job)))
        with contextlib.ExitStack() as undo:
            undo.callback(log.close)
            pid = await self._started(launch, job, log)
            undo.pop_all()
        child = Child(pid, lambda _child, how: self._ended(entry, how))
        entry = Rank(launch, child, file, log)
        self._ranks[launch.rank] = entry
        child.watch()

    async def _started(self, launch: RankLaunch, job: TrainingJob, log: RankLog) -> int:
        """Start the process of a rank and return its pid."""
        command = job.spec.runtime.command
        if command is None:
            return await self._zygote.fork_rank(launch, log.inlet)
        write_launch(launch)
        environment = command_environment(launch, command.env)
        if launch.rank == 0:
            log.inlet.write_text("".join(f"{line}\n" for line in explain(job.spec.network)))
        self._commands.add(launch.rank_file)
        return await _spawned(list(command.args), environment, log.inlet)

    def _ended(self, entry: Rank, how: Exit) -> None:
        if entry.child.killed:
            if not entry.file.read_exit_report():
                return
            # It wrote an exit report, so it had failed by itself before the kill.
            how = Exit(code=1, signal=None)
        report = self._exit_report(entry, how)
        self.exits.append(report)
        self._on_exit(report)

    def _exit_report(self, entry: Rank, how: Exit) -> pb.RankExit:
        entry.log.drain()
        left = entry.file.read_exit_report()
        report = pb.RankExit(
            rank=entry.launch.rank,
            attempt=entry.launch.attempt,
            at=time.time(),
            step=entry.file.read().step,
            exit_report=json.dumps(left) if left else "",
            log_tail=entry.log.tail.last_lines(_TAIL_LINES),
        )
        if how.signal is not None:
            report.signal = how.signal
        else:
            report.exit_code = how.code or 0
        killed = signal.SIGKILL in (how.signal, (how.code or 0) - _SIGNAL_CODES)
        report.host_note = self._host_notes.note(killed=killed, tail=report.log_tail)
        self._amend(entry.launch, report)
        return report

    async def kill(self, attempt: int, deadline_s: float) -> list[int]:
        """SIGKILL and reap all ranks of `attempt` or older; none of these attempts is launched afterwards.

        Also ends the attempt's store and the processes that the ranks' programs started.

        Returns:
            The ranks that were not reaped within `deadline_s` seconds.
        """
        self._killed = max(self._killed, attempt)
        if self.attempt > attempt:
            return []
        late = await self._end_ranks(deadline_s)
        if self._store_attempt <= attempt:
            await self._drop_store()
        return sorted(entry.launch.rank for entry in late)

    async def _end_ranks(self, deadline_s: float) -> list[Rank]:
        """SIGKILL all ranks and forget those that were reaped; returns those that were not."""
        entries = list(self._ranks.values())
        await kill_all([entry.child for entry in entries], deadline_s)
        if entries:
            await asyncio.to_thread(self._strays.kill)
            await asyncio.to_thread(remove_ownerless, loader_folder())
        if self._commands:
            await asyncio.to_thread(kill_strays, self._commands)
            self._commands = set()
        ended = [entry for entry in entries if entry.child.ended.is_set()]
        for entry in ended:
            entry.file.close()
            entry.log.close()
            self._ranks.pop(entry.launch.rank, None)
        await asyncio.to_thread(_join, [entry.log for entry in ended])
        return list(self._ranks.values())

    def _own_children(self) -> set[int]:
        """Return the pids of the children that no rank left behind."""
        known = {entry.child.pid for entry in self._ranks.values()}
        known |= {self._store.pid} if self._store is not None else set()
        known |= {self._zygote.pid} if self._zygote.pid is not None else set()
        return known | helpers()

    async def _drop_store(self) -> None:
        if self._store is not None:
            await kill_all([self._store], 5.0)
            self._store = None

    async def ended(self) -> None:
        """Wait until every rank process has ended."""
        await asyncio.gather(*(entry.child.ended.wait() for entry in self._ranks.values()))

    def request_save(self, attempt: int, *, then_stop: bool) -> None:
        """Ask the ranks of `attempt` to save a checkpoint after the same step, and optionally to exit."""
        if attempt == self.attempt:
            for entry in self._ranks.values():
                entry.file.control = Control.SAVE_AND_EXIT if then_stop else Control.SAVE

    def report(self) -> pb.Report:
        """Return the current records of all ranks."""
        return pb.Report(ranks=[self._status(entry) for entry in self._ranks.values()])

    def _status(self, entry: Rank) -> pb.RankStatus:
        record = entry.file.read()
        status = pb.RankStatus(
            rank=entry.launch.rank,
            pid=entry.child.pid,
            step=record.step,
            phase=Phase(record.phase).name.lower(),
            micro_batch=record.micro_batch,
            tokens=record.tokens,
            step_seconds=record.step_seconds,
            stall_seconds=record.stall_seconds,
            progress_at=self._unix(record.progress_at),
            groups_at=self._unix(record.groups_at),
            loaded_at=self._unix(record.loaded_at),
            first_step_at=self._unix(record.first_step_at),
            saved_step=record.saved_step,
            saved_attempt=record.saved_attempt,
            flops=record.flops,
            peak_flops=record.peak_flops,
            snapshot_step=record.snapshot_step,
            snapshot_attempt=record.snapshot_attempt,
            snapshot_seconds=record.snapshot_seconds,
        )
        if not math.isnan(record.loss):
            status.loss = record.loss
        if not math.isnan(record.grad_norm):
            status.grad_norm = record.grad_norm
        return status

    def _unix(self, monotonic: float) -> float:
        return monotonic + self._to_unix if monotonic else 0.0

    def log_matches(self) -> list[pb.LogMatch]:
        """Return the new lines of all rank logs that match a rule with an action; called in a thread.

        Takes at most a quarter of a core. Text beyond that is not classified, and once a minute an alert says
        how much it was.
        """
        found: list[pb.LogMatch] = []
        entries = list(self._ranks.values())
        for number, entry in enumerate(entries):
            began = time.thread_time()
            cpu_s = max(0.0, self._log_cpu.refill()) / (len(entries) - number)
            found += [_log_match(entry.launch, match) for match in entry.log.tail.new_matches(cpu_s)]
            self._log_cpu.spend(time.thread_time() - began)
        return found + self._losses(entries)

    def _losses(self, entries: list[Rank]) -> list[pb.LogMatch]:
        """Say once a minute what of the logs was left out, in reading and in writing."""
        lost = [entry for entry in entries if entry.log.tail.skipped_bytes or entry.log.unwritten_bytes]
        if not lost or time.monotonic() - self._flood_at < _FLOOD_S:
            return []
        self._flood_at = time.monotonic()
        skipped = [(entry, entry.log.tail.take_skipped()) for entry in lost]
        unwritten = [(entry, entry.log.take_unwritten()) for entry in lost]
        return [
            *_loss("logFlood", skipped, "were not classified: they print too much"),
            *_loss("logNotWritten", unwritten, "could not be written: the disk of the run's folder is full"),
        ]

    def last_lines(self, rank: int, count: int) -> list[str]:
        """Return the last `count` lines of a rank's log, [] for an unknown rank."""
        entry = self._ranks.get(rank)
        return entry.log.tail.last_lines(count) if entry else []

    def segments(self) -> pb.SegmentTimes | None:
        """Return the ranks' compute times of the steps since the last call, None if there were none."""
        return self._segments.batch(
            self.attempt, ((rank, entry.launch.rank_file) for rank, entry in self._ranks.items())
        )

    async def evidence(self) -> list[pb.RankEvidence]:
        """Return each rank's process state, progress and stack; also works for stopped and stuck ranks."""
        return list(await asyncio.gather(*(self._evidence_of(entry) for entry in self._ranks.values())))

    async def _evidence_of(self, entry: Rank) -> pb.RankEvidence:
        record = entry.file.read()
        state = process_state(entry.child.pid)
        stack = await stack_of(entry.child.pid) if state in ("R", "S", "D") else []
        return pb.RankEvidence(
            rank=entry.launch.rank,
            process_state=state,
            step=record.step,
            phase=Phase(record.phase).name.lower(),
            micro_batch=record.micro_batch,
            stack=stack,
            collectives=record.collectives or -1,
        )


def _join(logs: list[RankLog]) -> None:
    """Wait until the logs are in their files; strays that hold a pipe open are waited for a second in all."""
    end = time.monotonic() + _JOIN_S
    for log in logs:
        log.join(max(0.0, end - time.monotonic()))


def _loss(rule: str, lost: list[tuple[Rank, int]], what: str) -> list[pb.LogMatch]:
    """Return an alert about bytes of logs, none if there are none."""
    lost = [(entry, count) for entry, count in lost if count]
    if not lost:
        return []
    total = sum(count for _, count in lost)
    names = ", ".join(str(entry.launch.rank) for entry, _ in lost[:8])
    line = f"{total} bytes of the logs of ranks {names} {what}"
    return [_log_match(lost[0][0].launch, LineMatch(rule, "framework", "alert", line))]


def _log_match(launch: RankLaunch, match: LineMatch) -> pb.LogMatch:
    return pb.LogMatch(
        rank=launch.rank,
        attempt=launch.attempt,
        rule=match.rule,
        category=match.category,
        action=match.action,
        line=match.line,
        at=time.time(),
    )


async def _spawned(args: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a program in a thread and return its pid; if this is cancelled, the program is killed."""
    starting = asyncio.ensure_future(asyncio.to_thread(spawn, args, environment, log))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await settled(starting)
        if starting.exception() is None:
            os.kill(starting.result(), signal.SIGKILL)
        raise


def _commit(message: pb.Commit) -> Commit:
    return Commit(message.step, message.attempt)
