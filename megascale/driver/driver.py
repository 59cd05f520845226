"""The driver: claims the record, feeds events to the core and executes its effects until the job ends."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import grpc

from megascale.checkpoint.store import CheckpointStore
from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.names import short_revision
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Command
from megascale.core.eventlog import Entry, Header
from megascale.core.machine import Core
from megascale.core.state.record import JobState
from megascale.driver import wire
from megascale.driver.border import Border, RefusedMessageError
from megascale.driver.executor import EffectExecutor
from megascale.driver.inbox import Inbox
from megascale.driver.links import AgentLink, Links
from megascale.driver.pauses import LEAST_S, PauseWatch
from megascale.driver.policy import needs_restart, policy_of, refusal
from megascale.driver.ports import DriverPorts
from megascale.driver.record import Claim
from megascale.driver.revisions import Revisions
from megascale.driver.segments import SegmentBoard
from megascale.driver.service import Service
from megascale.driver.status import StatusBoard
from megascale.driver.summary import counted_steps, summarise
from megascale.driver.writer import DecisionWriter
from megascale.errors import InputError, UnreachableError, first_error
from megascale.fleet.base import SlotEvent
from megascale.job import TrainingJob, from_json, revision_of
from megascale.observe.rundir import RunDir, write_atomically
from megascale.offload import StorageThread
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import SERVER_OPTIONS
from megascale.rpc.megascale_pb2_grpc import add_DriverServicer_to_server

log = logging.getLogger(__name__)

_FIRST_SCAN_S: Final = 10.0
_METRICS_S: Final = 60.0
_NOTICED_S: Final = 0.05
_CONFIRM_S: Final = 5.0
_REFUSED_S: Final = 60.0
_REFUSED_NODES: Final = 1024
_COMMANDS: Final = frozenset(
    {Command.EVICT, Command.RELEASE, Command.SAVE, Command.STOP, Command.SUSPEND, Command.RESUME}
)
_STOPPING: Final = (fx.SaveNow, fx.Kill, fx.Release, fx.Finish, fx.Page)
"""Effects that need no record: a successor that knows nothing of them finds a job without ranks."""
_NEEDS_NODE: Final = frozenset({Command.EVICT, Command.RELEASE})


class Driver:
    """Runs one `Core` for one job.

    Attributes:
        done: set when the job has ended and every node is released.
        changed: set after every decision; the service that publishes the status clears it.
        term: number of this driver; each driver that claims the record gets a higher one.
    """

    def __init__(self, run: RunDir, job: TrainingJob, ports: DriverPorts, claim: Claim) -> None:
        self.done = asyncio.Event()
        self.changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._run, self._ports = run, ports
        self.term = claim.term
        self.revisions = Revisions(claim.revisions)
        policy = self._policy_of(job)
        self.core = Core.restore(policy, claim.snapshot) if claim.snapshot else Core(policy)
        self._given, self._job = job, self._in_force(job)
        self.core.policy = self._policy_of(self._job)
        self.links = Links()
        self._inbox = Inbox()
        self.board = StatusBoard(job, self.core, self.links, self._inbox)
        self._store = StorageThread("the checkpoint store")
        self._pauses = PauseWatch()
        self._writer = DecisionWriter(ports.log, self._write_record, self._say)
        self._held: list[fx.Effect] = []
        self._border = Border(self.core)
        self._doubted = asyncio.Event()
        self._refused_at: dict[str, float] = {}
        self._segments = SegmentBoard()
        self._executor = EffectExecutor(
            self.links,
            ports.fleet,
            term=self.term,
            post=self.post,
            scan_commits=self._scan_commits,
            alert=self.board.alert,
            finish=self._finish,
        )

    @classmethod
    async def take_over(cls, run: RunDir, job: TrainingJob, ports: DriverPorts) -> Driver:
        """Claim the job's record and return a driver that continues from it.

        Raises:
            FencedError: another driver holds the record.
            InputError: the record is damaged, or of a newer version.
            OSError: the event log cannot be written.
        """
        claim = await ports.record.claim()
        driver = cls(run, job, ports, claim)
        await ports.log.begin(Header(job.metadata.name, driver.core.policy, claim.snapshot), claim.term)
        return driver

    def _policy_of(self, job: TrainingJob) -> Policy:
        return policy_of(job, shared_machine=self._ports.shared_machine)

    def _in_force(self, job: TrainingJob) -> TrainingJob:
        """Return the manifest that the core decides by: the last one it accepted, else `job`.

        An ended job that is started again uses `job`, unless that revision was rolled back.
        """
        record = self.core.record
        if record.state is JobState.FINISHED and revision_of(job) != record.spec.rejected:
            return job
        revision = record.spec.waiting or record.spec.running
        try:
            return (revision and self.revisions.job(revision)) or job
        except InputError as error:
            log.warning("%s; going on with the manifest that was given", error)
            return job

    async def run(self) -> None:
        """Serve until the job ends.

        Raises:
            FencedError: a driver of a higher term took over.
        """
        # Must precede all events of agents and slots: the core accepts nodes only after DriverStarted.
        self.post(ev.DriverStarted(self.term))
        record = self.core.record
        if self._ports.reopens and record.state is JobState.FINISHED and not record.pending:
            self.post(ev.ManualCommand(Command.REOPEN, "the job was started again"))
        self.change_spec(self._given)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_DriverServicer_to_server(Service(self, self._ports.listener), server)  # type: ignore[no-untyped-call]
        try:
            await self._open(server)
            async with asyncio.TaskGroup() as tasks:
                serving = [tasks.create_task(each.run(self)) for each in self._ports.background_services]
                serving.append(tasks.create_task(self._pauses.run()))
                serving.append(tasks.create_task(self._pump(tasks)))
                serving.append(tasks.create_task(self._confirm_term()))
                await self._ended.wait()
                for task in serving:
                    task.cancel()
                self._executor.cancel()
        except BaseExceptionGroup as problems:
            raise first_error(problems) from problems
        finally:
            await self._close(server)

    async def _open(self, server: grpc.aio.Server) -> None:
        """Start the server and the fleet, then scan the store for commits that no agent will report."""
        endpoint = await self._ports.listener.open(server)
        await server.start()
        await self._ports.listener.announce(endpoint, self.term)
        self._run.summary_file.unlink(missing_ok=True)
        await self._ports.fleet.start(self._on_slot_event)
        await self._scan_commits(_FIRST_SCAN_S)

    async def _close(self, server: grpc.aio.Server) -> None:
        await server.stop(grace=0.5)
        await self._ports.log.close()
        await self._ports.record.close()

    def post(self, event: ev.Event) -> None:
        """Queue an event for the core."""
        self._inbox.post(event)

    async def _pump(self, tasks: asyncio.TaskGroup) -> None:
        """Apply events; after a pause, DriverPaused comes first. It is not followed by another of its own."""
        late_s = 0.0
        self._pauses.take()  # the start is none
        while True:
            event = await self._next_event()
            gap_s = max(self._pauses.take(), late_s)
            late_s = await self._apply(ev.DriverPaused(gap_s), tasks) if gap_s else 0.0
            late_s = max(late_s, await self._apply(event, tasks))
            if (self._ports.log.is_full or self._writer.has_gap) and self.core.is_undisturbed:
                await self._begin_part(tasks)

    async def _begin_part(self, tasks: asyncio.TaskGroup) -> None:
        """Take over from itself: the event log goes on with a header from which it can be replayed."""
        header = Header(self._job.metadata.name, self.core.policy, self.core.snapshot(), continues=True)
        if not await self._writer.begin_part(header, self.term):
            return
        self.core.start_over()
        await self._apply(ev.DriverStarted(self.term), tasks)
        for link in self.links:
            ranks = list(link.report.ranks)
            numbers = tuple(rank.rank for rank in ranks)
            joined = ev.NodeJoined(link.node, link.incarnation, link.attempt, numbers, link.labels)
            for event in (joined, wire.report_event(link, ranks)):
                await self._apply(event, tasks)

    async def _next_event(self) -> ev.Event:
        deadline = self.core.next_deadline()
        return await self._inbox.next(None if deadline is None else max(0.0, deadline - time.time()))

    async def _apply(self, event: ev.Event, tasks: asyncio.TaskGroup) -> float:
        """Pass the event to the core, persist the decision, then start its effects.

        Returns how many seconds its effects began late, because they waited for the writes; 0.0 = at once.
        """
        record, now = self.core.record, time.time()
        waited_s = round(self._inbox.waited_s, 3)
        waited_s = waited_s if waited_s >= _NOTICED_S else 0.0
        effects = self.core.step(event, now, waited_s)
        self._ports.log_context.attempt = record.attempt
        entry = Entry(now, event, tuple(effects), waited_s)
        is_stored, late_s = await self._writer.write(entry, must_store=self.core.must_store)
        if self.core.must_store:
            self.changed.set()
        self._start(effects, tasks, is_stored=is_stored)
        # A queued event may reopen the job, so stop only when the inbox is empty.
        if record.state is JobState.FINISHED and not record.pending and not self._inbox:
            self.done.set()
            self._ended.set()
        # The core's deadlines for the effects count from the decision.
        return late_s if effects and late_s >= LEAST_S else 0.0

    async def _write_record(self) -> None:
        referred = self.revisions.referred(self.core.record.spec)
        await self._ports.record.write(self.core.snapshot(), referred)

    def _start(self, effects: Sequence[fx.Effect], tasks: asyncio.TaskGroup, *, is_stored: bool) -> None:
        """Start the effects and those held before; without a record, only what stops the job."""
        pending = self.core.record.pending
        waiting = [effect for effect in self._held if effect.effect_id in pending]
        self._held = []
        for effect in (*waiting, *effects):
            if is_stored or isinstance(effect, _STOPPING):
                self._executor.start(effect, tasks)
            else:
                self._held.append(effect)

    def _say(self, text: str) -> None:
        self.board.alert(text)
        self.changed.set()

    def attach(self, link: AgentLink, message: pb.AgentMessage) -> bool:
        """Register an agent's new stream and post its node to the core.

        Returns False, and registers nothing, if the message cannot be true.
        """
        if not self._is_current(link, message.fence):
            return False
        try:
            self._border.check_hello(message)
            self.links.check_identity(link)
        except RefusedMessageError as error:
            self._refuse(link, error)
            return False
        link.attempt = message.fence.attempt
        nodes = self.core.policy.nodes + self.core.policy.spare_nodes
        heartbeat_s = float(self._job.spec.health.heartbeat_seconds)
        report_s = min(heartbeat_s, 0.2 + 0.004 * nodes)
        welcome = pb.Welcome(attempt=self.core.record.attempt, report_period_s=report_s)
        link.send(pb.DriverMessage(term=self.term, welcome=welcome))
        self.links.attach(link)
        # Before NodeJoined: the next launch may start as soon as the node has joined, and uses them.
        for event in wire.snapshot_events(link.node, message.hello.snapshots):
            self.post(event)
        joined = wire.joined_event(link, message, self._ports.fleet.labels(link.node))
        link.labels = joined.labels
        self.post(joined)
        return True

    def detach(self, link: AgentLink) -> None:
        """Unregister the stream after it has ended."""
        self.links.detach(link)

    def receive(self, link: AgentLink, message: pb.AgentMessage) -> None:
        """Handle one message of an attached agent; one that cannot be true is ignored."""
        if not self._is_current(link, message.fence):
            return
        try:
            self._check(link, message)
        except RefusedMessageError as error:
            self._refuse(link, error)
            return
        link.attempt, link.heard_at = message.fence.attempt, time.monotonic()
        match message.WhichOneof("body"):
            case "report":
                self._on_report(link, message.report)
            case "exit":
                self.post(wire.exit_event(link, message.exit))
            case "log":
                self.board.alert(
                    f"{link.node}, rank {message.log.rank}, {message.log.rule}: {message.log.line}"
                )
                self.post(wire.log_event(link, message.log))
            case "result":
                link.answered(message.result)
            case "evidence":
                self.post(wire.evidence_event(link, message.evidence))
            case "hardware":
                self.post(wire.hardware_event(link, message.hardware))
            case "segments":
                self._on_segments(message.segments)

    def _is_current(self, link: AgentLink, fence: pb.Fence) -> bool:
        """Return whether this driver may act on a message; has the record read if the sender names a higher
        term, and ignores what it sends, because the record alone says who is the driver."""
        if fence.term > self.term:
            self._refuse(link, f"it has seen a driver of term {fence.term}, this one is of term {self.term}")
            self._doubted.set()
            return False
        return True

    async def _confirm_term(self) -> None:
        """Read the record whenever an agent names a higher term.

        Raises:
            FencedError: the record has a higher term too.
        """
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            try:
                await self._ports.record.confirm()
            except (OSError, UnreachableError) as error:
                log.warning("whether another driver took over is not known: %s", error)
            await asyncio.sleep(_CONFIRM_S)

    def _check(self, link: AgentLink, message: pb.AgentMessage) -> None:
        """Raise RefusedMessageError unless the message can be true; drop ranks of other attempts."""
        self._border.check_attempt(message.fence.attempt)
        if message.WhichOneof("body") != "report":
            self._border.check_other(link.node, message, time.time())
        elif message.fence.attempt == self.core.record.attempt:
            elapsed_s = time.monotonic() - link.heard_at
            before = link.report if link.attempt == message.fence.attempt else pb.Report()
            self._border.check_report(link.node, message, before, elapsed_s, time.time())
        else:
            del message.report.ranks[:]

    def _refuse(self, link: AgentLink, problem: object) -> None:
        """Ignore a message; an alert says so, at most once a minute for a node."""
        now = time.monotonic()
        if now - self._refused_at.get(link.node, -math.inf) >= _REFUSED_S:
            self._refused_at[link.node] = now
            if len(self._refused_at) > _REFUSED_NODES:
                self._refused_at.pop(next(iter(self._refused_at)))
            self.board.alert(f"a message of {link.node} is ignored: {problem}")
            log.warning("a message of %s is ignored: %s", link.node, problem)

    def _on_report(self, link: AgentLink, report: pb.Report) -> None:
        link.report = report
        # Copy once: each iteration over a protobuf list creates its entries again, and this code runs for
        # every heartbeat of every node.
        ranks = list(report.ranks)
        self.post(wire.report_event(link, ranks))
        if ranks:
            self.board.sample(wire.most_advanced_rank(ranks))
        for commit in wire.saved_commits(ranks):
            self._see_commit(commit)

    def _on_segments(self, segments: pb.SegmentTimes) -> None:
        record = self.core.record
        for event in self._segments.take(segments, record.attempt, record.ranks):
            self.post(event)

    def _see_commit(self, commit: Commit) -> None:
        if commit not in self.core.record.commits:
            self.post(wire.commit_event(commit, time.time()))

    async def _scan_commits(self, timeout_s: float) -> None:
        """Post the commits in the checkpoint store to the core; raises an alert after `timeout_s` seconds."""
        uri = self._run.checkpoints(self._given.spec.checkpoint.uri)
        try:
            commits = await self._store.call(lambda: CheckpointStore(uri).commits(), timeout_s)
        except (UnreachableError, OSError) as error:
            self.board.alert(f"checkpoints that no agent told of may be overlooked: {error}")
            return
        for commit in commits:
            self._see_commit(commit)

    def _on_slot_event(self, event: SlotEvent) -> None:
        if event.leaving:
            self.post(wire.slot_event(event, None))
            return
        link = self.links.get(event.node)
        node = self.core.live.nodes.get(event.node)
        incarnation = link.incarnation if link else node.incarnation if node else None
        self.post(wire.slot_event(event, incarnation))
        self.links.lost(event.node)

    def change_spec(self, job: TrainingJob) -> None:
        """Adopt the manifest if its revision differs from the current one.

        New thresholds apply immediately; what the ranks run changes at the next launch. A revision that was
        rolled back is not adopted again, and an alert says so.

        Raises:
            InputError: the manifest is too large to be kept with the record.
        """
        spec, revision = self.core.record.spec, self.revisions.add(job)
        if revision == spec.rejected:
            self.board.alert(
                f"revision {short_revision(revision)} of the manifest made no progress and was rolled back; "
                f"{short_revision(spec.running)} runs until the manifest is changed again"
            )
        elif revision != (spec.waiting or spec.running):
            restart = needs_restart(self._in_force(self._job), job)
            self._job = job
            self.post(ev.SpecChanged(self._policy_of(job), revision, restart))

    def change_manifest(self, text: str) -> tuple[bool, str]:
        """Adopt thresholds of a manifest given as canonical JSON; returns whether, and a message."""
        if not self._ports.shared_machine:
            return False, "the manifest of a job on a cluster is changed with kubectl apply"
        try:
            job = from_json(text)
            why = refusal(self._in_force(self._job), job)
            if why is not None:
                return False, why
            self.change_spec(job)
        except InputError as error:
            return False, str(error)
        return True, "accepted"

    def command(self, request: pb.CommandRequest) -> tuple[bool, str]:
        """Queue a command of a user; returns whether it was accepted, and a message that gives the reason."""
        if request.command not in _COMMANDS:
            return False, f"unknown command {request.command!r}; known: {', '.join(sorted(_COMMANDS))}"
        if request.command == Command.STOP:
            self._writer.give_way()
        known = {*self.core.live.nodes, *self.core.record.excluded}
        if request.command in _NEEDS_NODE and request.node not in known:
            return False, f"no node {request.node!r}; known: {', '.join(sorted(known))}"
        if self.core.record.state is JobState.FINISHED:
            return False, f"the job is {self.core.record.finish_state}"
        self.post(wire.command_event(request))
        return True, "accepted"

    async def _finish(self) -> None:
        """Release every node, then write the summary file, whose presence means that the job has ended.

        If it cannot be written after a person asked to stop, the driver's exit code 0 has to do.
        """
        try:
            await self._ports.fleet.close()
        finally:
            files = StorageThread("the run folder")
            steps = await self._counted_steps(files)
            text = json.dumps(summarise(self._job, self.core, steps, time.time()), indent=2)
            await self._writer.until_written(
                lambda: files.call(lambda: write_atomically(self._run.summary_file, text))
            )

    async def _counted_steps(self, files: StorageThread) -> dict[int, dict[str, Any]]:
        try:
            return await files.call(lambda: counted_steps(self._run.metrics_file), _METRICS_S)
        except (UnreachableError, OSError) as error:
            self.board.alert(f"the summary has no rates: {error}")
            return {}
