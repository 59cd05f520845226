"""A job told in sentences: the script plays agents, fleet and clock around a real core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from core_invariants import check

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.core.state.record import Incident, JobRecord, JobState, Node, NodeStatus

E = TypeVar("E", bound=fx.Effect)
HEARTBEAT_S = 2.0


class Script:
    """Nodes are n-0, n-1...; effects are kept in `said` until they are taken with `heard`.

    What has to hold of the state is asserted after every event (`core_invariants`), unless the test `edited`
    the record into a state that no event leads to.
    """

    def __init__(self, core: Core, now: float = 1000.0) -> None:
        self.core, self.now = core, now
        self.said: list[fx.Effect] = []
        self.silent: set[str] = set()
        self.incarnations: dict[str, str] = {}
        self.step_s = 1.0
        self.loss: float | None = None
        self.term = 0
        self.edited = False

    # What happens

    def tell(self, event: ev.Event) -> list[fx.Effect]:
        return self.tell_late(event, waited_s=0.0)

    def tell_late(self, event: ev.Event, *, waited_s: float) -> list[fx.Effect]:
        """An event that waited in the driver's inbox."""
        effects = self.core.step(event, self.now, waited_s)
        if not self.edited:
            check(self.core, effects)
        self.said += effects
        return effects

    def driver_starts(self) -> Script:
        self.term += 1
        self.tell(ev.DriverStarted(self.term))
        return self

    def driver_restarts(self, after_s: float = 0.0) -> Script:
        """A new driver life from the snapshot alone."""
        self.now += after_s
        self.core = Core.restore(self.core.policy, self.core.snapshot())
        return self.driver_starts()

    def join(
        self, *nodes: str, labels: dict[str, str] | None = None, attempt: int = 0, checked: bool = False
    ) -> Script:
        for node in nodes:
            incarnation = self.incarnations.setdefault(node, f"{node}/1")
            self.tell(ev.NodeJoined(node, incarnation, attempt, (), labels or {}, checked))
        return self

    def agent_restarts(self, node: str) -> Script:
        self.incarnations[node] = f"{node}/{int(self.incarnations[node].split('/')[1]) + 1}"
        return self.join(node)

    def goes(self, node: str, *, planned: bool = False, reason: str = "pod deleted") -> Script:
        self.silent.add(node)
        self.tell(ev.NodeGone(node, self.incarnations[node], reason, at=self.now, planned=planned))
        return self

    def heartbeat(self, *nodes: str, step: int | None = None, **fields: Any) -> Script:
        """One report of each node with one rank per node, in the state of a running attempt."""
        for node in nodes:
            self.tell(ev.NodeReport(node, self.incarnations[node], *self._records(node, step, fields)))
        return self

    def _records(
        self, node: str, step: int | None, fields: dict[str, Any]
    ) -> tuple[int, tuple[ev.RankProgress, ...]]:
        record = self.record
        if node not in record.assignment:
            return 0, ()
        first = record.assignment.index(node) * self.core.policy.ranks_per_node
        passed = self.now if step is not None or record.state is not JobState.LAUNCHING else 0.0
        values: dict[str, Any] = {
            "step": self.core.live.step if step is None else step,
            "phase": "forward",
            "progress_at": self.now if step is not None else self.core.live.progress_at,
            "step_seconds": self.step_s,
            **dict.fromkeys(("groups_at", "loaded_at", "first_step_at"), passed),
            "loss": self.loss,
            **fields,
        }
        ranks = range(first, first + self.core.policy.ranks_per_node)
        return record.attempt, tuple(ev.RankProgress(rank=rank, **values) for rank in ranks)

    def heartbeats(self) -> Script:
        return self.heartbeat(*self._beating())

    def _beating(self) -> Iterator[str]:
        yield from (
            n
            for n, node in list(self.live_nodes.items())
            if node.status is not NodeStatus.GONE and n not in self.silent
        )

    def train(self, steps: int, **fields: Any) -> Script:
        """All nodes complete so many more steps, one heartbeat each."""
        start = self.core.live.step
        for step in range(start + 1, start + steps + 1):
            self.now += self.step_s
            self.heartbeat(*self._beating(), step=step, **fields)
        return self

    def wait(self, seconds: float, *, beating: bool = True) -> Script:
        """Time passes without progress; heartbeats go on and timers fire when they are due."""
        end, next_beat = self.now + seconds, self.now + HEARTBEAT_S
        while True:
            due = self.core.next_deadline()
            times = [end, *([next_beat] if beating else []), *([due] if due is not None else [])]
            self.now = max(self.now, min(times))
            if self.now >= end:
                break
            if beating and self.now >= next_beat:
                next_beat += HEARTBEAT_S
                self.heartbeats()
            else:
                self.tell(ev.Tick())
        self.tell(ev.Tick())
        return self

    def commit(self, step: int, attempt: int | None = None) -> Script:
        self.tell(ev.CommitDone(step, self.record.attempt if attempt is None else attempt, self.now))
        return self

    def exit(
        self,
        rank: int,
        code: int | None = None,
        *,
        sig: int | None = None,
        error: str = "",
        message: str = "",
        **more: Any,
    ) -> Script:
        record = self.record
        node = record.assignment[rank // self.core.policy.ranks_per_node]
        self.tell(
            ev.RankExited(
                node,
                self.incarnations[node],
                record.attempt,
                rank,
                code,
                sig,
                self.now,
                error_type=error,
                error_message=message,
                **more,
            )
        )
        return self

    def all_exit(self, code: int) -> Script:
        for rank in range(self.record.ranks):
            self.exit(rank, code)
        return self

    def command(self, command: str, node: str = "") -> Script:
        self.tell(ev.ManualCommand(command, "because", node, "ada"))
        return self

    def hardware(self, node: str, kind: str, code: int | None = None, text: str = "", **more: Any) -> Script:
        self.tell(ev.HardwareEvent(node, kind, code, text, self.now, **more))
        return self

    def log(self, node: str, rule: str, category: str, action: str, line: str = "") -> Script:
        self.tell(ev.LogMatch(node, rule, category, action, line or rule, at=self.now))
        return self

    # What the core is answered

    def done(self, kind: type[fx.Effect], **detail: Any) -> Script:
        """The newest pending effect of this kind was carried out."""
        self.tell(ev.EffectDone(self.pending(kind)[-1], detail))
        return self

    def fails(self, kind: type[fx.Effect], reason: str = "no", nodes: tuple[str, ...] = ()) -> Script:
        self.tell(ev.EffectFailed(self.pending(kind)[-1], reason, nodes))
        return self

    def refuse(self, kind: type[fx.Effect], reason: str = "no quota") -> Script:
        self.tell(ev.FleetRefused(self.pending(kind)[-1], reason))
        return self

    def launches(self) -> Script:
        """The pending launch succeeds and every node completes its first step."""
        self.done(fx.Launch)
        return self.train(1)

    def recovers(self) -> Script:
        """The ranks are reaped, the next attempt launched, and its first step completed."""
        return self.done(fx.Kill).launches()

    # What is found

    @property
    def record(self) -> JobRecord:
        return self.core.record

    @property
    def live_nodes(self) -> dict[str, Node]:
        return self.core.live.nodes

    @property
    def state(self) -> JobState:
        return self.record.state

    @property
    def incident(self) -> Incident:
        found = self.record.incident or (self.record.incidents[-1] if self.record.incidents else None)
        assert found is not None
        return found

    def pending(self, kind: type[fx.Effect]) -> list[str]:
        return [i for i, p in self.record.pending.items() if p.kind == kind.__name__]

    def heard(self, kind: type[E]) -> list[E]:
        """Effects of a kind since the last look."""
        found = [effect for effect in self.said if isinstance(effect, kind)]
        self.said = [effect for effect in self.said if not isinstance(effect, kind)]
        return found

    def resumed_from(self) -> Commit | None:
        return self.heard(fx.Launch)[-1].resume


Start = Callable[..., Script]


@pytest.fixture
def start() -> Start:
    """A started job: start(nodes, **policy); its agents have not joined."""

    def begin(nodes: int = 2, **policy: Any) -> Script:
        settings = {"nodes": nodes, "min_nodes": nodes, "steps": 1000, "backoff_limit_s": 0.0, **policy}
        return Script(Core(Policy(**settings))).driver_starts()

    return begin


@pytest.fixture
def running(start: Start) -> Start:
    """A job in training: all nodes and spares joined, first step done."""

    def begin(nodes: int = 2, **policy: Any) -> Script:
        labels = policy.pop("labels", None)
        script = start(nodes, **policy)
        count = nodes + script.core.policy.spare_nodes
        for index in range(count):
            script.join(f"n-{index}", labels=labels(index) if labels else None)
        if script.pending(fx.Acquire):
            script.done(fx.Acquire)
        script.launches()
        assert script.state is JobState.RUNNING
        return script

    return begin
