"""A simulated agent: a real stream to the driver, simulated ranks."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import Any

from megascale.agent.config import AgentConfig
from megascale.agent.link import Link, heartbeat_is_due
from megascale.rpc import megascale_pb2 as pb
from simulated.world import Attempt, World

_STORE_PORT = 29500
_TICK_S = 0.25
_LATE_S = 0.005


class SimulatedAgent:
    """The agent of one slot. `run` returns its exit code when the driver releases it."""

    def __init__(self, config: AgentConfig, world: World, ranks_per_node: int, heartbeat_s: float) -> None:
        self._place, self._world = config, world
        self._ranks_per_node, self._heartbeat_s = ranks_per_node, heartbeat_s
        self._incarnation = secrets.token_hex(4)
        self._attempt: Attempt | None = None
        self._number = 0
        self._node_rank = 0
        self._ended = False
        self._leaving: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._link = Link(config, self._hello_messages, self._handle_command)
        self._report_s = heartbeat_s
        self._seq = 0

    async def run(self) -> int:
        """Run the agent; return its exit code: 0 released, 75 restart requested."""
        tasks = [asyncio.create_task(self._link.serve()), asyncio.create_task(self._send_heartbeats())]
        try:
            return await self._leaving
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _fenced(self, **body: Any) -> pb.AgentMessage:
        self._seq += 1
        fence = pb.Fence(
            node=self._place.node,
            incarnation=self._incarnation,
            term=self._link.highest_term,
            attempt=self._number,
            seq=self._seq,
        )
        return pb.AgentMessage(fence=fence, **body)

    def _own_ranks(self) -> list[int]:
        if self._attempt is None or self._ended:
            return []
        first = self._node_rank * self._ranks_per_node
        return list(range(first, first + self._ranks_per_node))

    def _hello_messages(self) -> list[pb.AgentMessage]:
        hello = pb.Hello(pid=1, ranks=self._own_ranks(), host=self._place.host, pod=self._place.pod)
        return [self._fenced(hello=hello), self._fenced(report=self._report())]

    def _report(self) -> pb.Report:
        attempt = self._attempt
        if attempt is None or self._ended:
            return pb.Report()
        now = time.time()
        groups, loaded, first = attempt.milestones(now)
        step = attempt.step(now)
        phase = "forward" if loaded else "startup"
        ranks = [
            pb.RankStatus(
                rank=rank, pid=1, step=step, phase=phase, tokens=step * 1000, loss=2.0, grad_norm=1.0,
                step_seconds=attempt.pace.step_s, progress_at=attempt.stopped_at or now, groups_at=groups,
                loaded_at=loaded, first_step_at=first, saved_step=-1, snapshot_step=-1,
                flops=1e12, peak_flops=2e12,
            )
            for rank in self._own_ranks()
        ]  # fmt: skip
        return pb.Report(ranks=ranks)

    async def _handle_command(self, message: pb.DriverMessage) -> None:
        body = message.WhichOneof("body")
        fields: dict[str, Any] = {}
        if body == "welcome":
            self._report_s = max(self._heartbeat_s, message.welcome.report_period_s)
            return
        if body == "shutdown":
            if not self._leaving.done():
                self._leaving.set_result(75 if message.shutdown.restart else 0)
            return
        if body == "collect_evidence":
            self._link.send(self._fenced(evidence=self._evidence(message.command_id)))
            return
        if body == "host_store":
            fields = {"store_port": _STORE_PORT}
        elif body == "launch":
            self._launch(message.launch)
        elif body == "kill" and message.kill.attempt >= self._number:
            self._attempt = None
        result = pb.CommandResult(command_id=message.command_id, ok=True, **fields)
        self._link.send(self._fenced(result=result))

    def _launch(self, order: pb.Launch) -> None:
        if order.attempt <= self._number:
            return
        resumed = order.resume.step if order.HasField("resume") else 0
        self._number, self._node_rank, self._ended = order.attempt, order.node_rank, False
        self._attempt = self._world.attempt(order.attempt, order.nodes, resumed)
        self._attempt.join(self._place.node)

    def _evidence(self, command_id: str) -> pb.Evidence:
        step = self._attempt.step(time.time()) if self._attempt else 0
        ranks = [
            pb.RankEvidence(rank=rank, process_state="S", step=step, phase="forward", collectives=-1)
            for rank in self._own_ranks()
        ]
        return pb.Evidence(command_id=command_id, ranks=ranks)

    async def _send_heartbeats(self) -> None:
        """Send a report per heartbeat, and milestones immediately."""
        sent: tuple[Any, ...] = ()
        now = time.time()
        sent_at = now - random.uniform(0, self._heartbeat_s)
        while True:
            # Real agents poll every 50 ms; hundreds of simulated ones share one process.
            until = now + _TICK_S if self._young() else max(now + _TICK_S, sent_at + self._report_s)
            await asyncio.sleep(until - until % _TICK_S + _LATE_S - now)
            now = time.time()
            reached = (self._number, self._attempt.milestones(now) if self._attempt else ())
            if not heartbeat_is_due(sent_at, now, self._report_s) and reached == sent:
                continue
            sent, sent_at = reached, now
            self._link.send(self._fenced(report=self._report()))
            self._end_when_done()

    def _young(self) -> bool:
        """Whether the attempt has milestones left to report."""
        return self._attempt is not None and not self._ended and not self._attempt.milestones(time.time())[2]

    def _end_when_done(self) -> None:
        attempt = self._attempt
        if attempt is None or self._ended or not attempt.done(time.time()):
            return
        for rank in self._own_ranks():
            exit_report = pb.RankExit(
                rank=rank, attempt=attempt.number, exit_code=0, at=time.time(), step=attempt.steps
            )
            self._link.send(self._fenced(exit=exit_report))
        self._ended = True
