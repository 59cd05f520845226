"""Golden transcripts: scenarios told in sentences and played to the real core (tests/golden/README.md)."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final, get_type_hints

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy, RecoveryOverride
from megascale.core.eventlog import Entry, Header, entry_line, header_line
from megascale.core.machine import Core
from megascale.core.state.record import Incident, JobState, NodeStatus

START: Final = 1_000_000.0
FIRST_STEP_S: Final = 5.0
INDENT: Final = "    "
_ANSWERED_AT_ONCE: Final = frozenset({"Page", "Exclude", "Release", "RequestQuarantine", "Finish"})
_STEPPING: Final = frozenset({JobState.LAUNCHING, JobState.RUNNING, JobState.DIAGNOSING, JobState.SAVING})


class World:
    """Agents and ranks: a heartbeat of every node and, while the ranks can work, a step each second."""

    def __init__(self, policy: Policy, labels: dict[str, str]) -> None:
        self.core = Core(policy)
        self.labels = labels
        self.now = self.zero = START
        self.lines: list[str] = []
        self.log: list[str] = []
        self.term = self.step = 0
        self.launched_at = self.first_step_at = self.progress_at = 0.0
        self.stalled, self.loss = False, None
        self.silent: set[str] = set()
        self.ended: set[int] = set()
        self.slow: dict[str, float] = {}
        self.incarnations: dict[str, int] = {}
        self._shown = _picture(self.core)

    def start_driver(self) -> None:
        """A new driver life, from the snapshot if there was one before."""
        snapshot = json.loads(json.dumps(self.core.snapshot())) if self.term else None
        self.log.append(header_line(Header("transcript", self.core.policy, snapshot)))
        if snapshot:
            self.core = Core.restore(self.core.policy, snapshot)
        self.term += 1
        self.tell(ev.DriverStarted(self.term))

    def tell(self, event: ev.Event) -> None:
        """Feed the core, note what changed, and answer the effects that always succeed."""
        effects = self.core.step(event, self.now)
        self.log.append(entry_line(Entry(self.now, event, tuple(effects))))
        shown = _picture(self.core)
        changes = [*_differences(self._shown, shown, self.zero), *(_effect_text(e) for e in effects)]
        self._shown = shown
        self.lines += [f"[{self.now - self.zero:.1f}] {text}" for text in changes]
        for effect in effects:
            if type(effect).__name__ in _ANSWERED_AT_ONCE:
                self.tell(ev.EffectDone(effect.effect_id))

    def live_until(self, end: float) -> None:
        """Timers fire when they are due; agents send heartbeats and ranks step at every full second."""
        while True:
            heartbeat = math.floor(self.now - START) + 1 + START
            due = self.core.next_deadline() if self.term else None
            upcoming = min(heartbeat, due if due is not None else heartbeat)
            if upcoming > end:
                self.now = end
                return
            self.now = max(self.now, upcoming)
            if self.now == heartbeat:
                self._beat()
            else:
                self.tell(ev.Tick())

    def _beat(self) -> None:
        record = self.core.record
        stepped = self._make_step()
        for name, node in list(self.core.live.nodes.items()):
            if node.status is not NodeStatus.GONE and name not in self.silent and node.incarnation:
                holds = name in record.assignment
                ranks = (self._progress(record.assignment.index(name)),) if holds and self.launched_at else ()
                self.tell(ev.NodeReport(name, self.incarnation(name), record.attempt if holds else 0, ranks))
        if stepped and record.state is JobState.RUNNING and len(record.assignment) >= 4:
            seconds = (
                self.slow.get(name, 1.0) * (1 + 0.002 * math.sin(self.step * 7 + rank * 3))
                for rank, name in enumerate(record.assignment)
            )
            self.tell(ev.SegmentTimes(record.attempt, self.step, tuple(seconds)))

    def _make_step(self) -> bool:
        record = self.core.record
        able = self.launched_at and record.state in _STEPPING and not self.stalled and not self.ended
        if not able or self.silent.intersection(record.assignment):
            return False
        if not self.first_step_at:
            if self.now < self.launched_at + FIRST_STEP_S:
                return False
            self.first_step_at = self.now
        self.step, self.progress_at = self.step + 1, self.now
        return True

    def _progress(self, rank: int) -> ev.RankProgress:
        working = self.first_step_at > 0
        third = (self.first_step_at - self.launched_at) / 3
        return ev.RankProgress(
            rank,
            self.step if working else 0,
            "forward" if working else "startup",
            progress_at=self.progress_at,
            step_seconds=1.0,
            groups_at=self.launched_at + third if working else 0.0,
            loaded_at=self.launched_at + 2 * third if working else 0.0,
            first_step_at=self.first_step_at,
            loss=(2.5 + 0.01 * math.sin(self.step) if self.loss is None else self.loss) if working else None,
        )

    def incarnation(self, node: str) -> str:
        return f"{node}/{self.incarnations.setdefault(node, 1)}"

    def pending(self, kind: str) -> str:
        """Id of the newest unanswered effect of a kind."""
        return [i for i, p in self.core.record.pending.items() if p.kind == kind][-1]

    # Sentences

    def joins(self, node: str, checked: str | None) -> None:
        known = self.core.live.nodes.get(node)
        if (known is not None and known.status is NodeStatus.GONE) or node in self.silent:
            self.incarnations[node] += 1
        self.silent.discard(node)
        leaf = {self.core.policy.topology_keys[0]: self.labels[node]} if node in self.labels else {}
        self.tell(ev.NodeJoined(node, self.incarnation(node), 0, (), leaf, checked is not None))

    def reconnects(self, node: str) -> None:
        attempt = self.core.record.attempt if node in self.core.record.assignment else 0
        self.tell(ev.NodeJoined(node, self.incarnation(node), attempt))

    def agent_restarts(self, node: str) -> None:
        self.incarnations[node] += 1
        self.tell(ev.NodeJoined(node, self.incarnation(node)))

    def gone(self, node: str, planned: str | None, reason: str) -> None:
        self.silent.add(node)
        self.tell(ev.NodeGone(node, self.incarnation(node), reason, self.now, planned=planned is not None))

    def silenced(self, node: str) -> None:
        self.silent.add(node)

    def heard_again(self, node: str) -> None:
        self.silent.discard(node)

    def stalls(self) -> None:
        self.stalled = True

    def goes_on(self) -> None:
        self.stalled = False

    def killed(self, rank: str, node: str, name: str) -> None:
        self._exit(rank, node, signal=int(signal.Signals[name]))

    def raises(self, rank: str, node: str, error: str, step: str, attempt: str, message: str) -> None:
        detail: dict[str, Any] = {"step": int(step), "attempt": int(attempt)} if step else {}
        self._exit(
            rank, node, exit_code=1, error_type=error, error_message=message, error_detail=detail
        )  # fmt: skip

    def exits(self, rank: str, node: str, code: str) -> None:
        self._exit(rank, node, exit_code=int(code))

    def all_exit(self, code: str) -> None:
        for rank, node in enumerate(self.core.record.assignment):
            self._exit(str(rank), node, exit_code=int(code))

    def _exit(self, rank: str, node: str, **how: Any) -> None:
        self.ended.add(int(rank))
        attempt = self.core.record.attempt
        where = (node, self.incarnation(node), attempt, int(rank))
        self.tell(ev.RankExited(*where, at=self.now, step=self.step, **how))

    def committed(self, step: str, attempt: str | None) -> None:
        self.tell(ev.CommitDone(int(step), int(attempt or self.core.record.attempt), self.now))

    def convicted(self, node: str, why: str) -> None:
        self.tell(ev.EffectDone(self.pending("CheckNodes"), {"convicted": {node: why}}))

    def done(self, kind: str, unreaped: str | None) -> None:
        if kind == "Launch":
            resume = self.core.record.lineage[self.core.record.attempt]
            self.step, self.launched_at, self.first_step_at = (resume.step if resume else 0), self.now, 0.0
            self.stalled, self.loss, self.ended = False, None, set()
        elif kind == "Kill":
            self.launched_at = self.first_step_at = 0.0
        detail: dict[str, Any] = {"unreaped": unreaped.split()} if unreaped else {}
        self.tell(ev.EffectDone(self.pending(kind), detail))

    def fails(self, kind: str, nodes: str | None, reason: str) -> None:
        self.tell(ev.EffectFailed(self.pending(kind), reason, tuple((nodes or "").split())))

    def refused(self, kind: str, reason: str) -> None:
        self.tell(ev.FleetRefused(self.pending(kind), reason))

    def probed(self, node: str, verdict: str, detail: str | None) -> None:
        healthy = {"sound": True, "unsound": False, "unclear": None}[verdict]
        self.tell(ev.ProbeResult(self.pending("Probe"), node, healthy, detail or ""))

    def evidence(self, node: str, rank: str, state: str, phase: str, collectives: str) -> None:
        found = ev.RankEvidence(int(rank), state, self.step, phase, 0, int(collectives))
        self.tell(ev.Evidence(self.core.live.evidence_id, node, (found,)))

    def hardware(self, sign: str, code: str | None, node: str, text: str) -> None:
        self.tell(ev.HardwareEvent(node, sign, int(code) if code else None, text, self.now))

    def asks(self, command: str, node: str | None, reason: str) -> None:
        self.tell(ev.ManualCommand(command, reason, node or "", "ada"))

    def loss_becomes(self, value: str) -> None:
        self.loss = float(value)

    def slows(self, node: str, percent: str) -> None:
        self.slow[node] = 1.0 + float(percent) / 100.0

    def ends(self) -> None:
        ledger = self.core.record.ledger
        ledger.charge(self.now)
        seconds = {phase: s for phase, s in ledger.seconds.items() if s >= 0.05}
        text = ", ".join(f"{phase} {s:.1f} s" for phase, s in seconds.items())
        self.lines.append(f"[{self.now - self.zero:.1f}] goodput since the start of the job: {text}")


_SENTENCES: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    (r"a driver starts|the driver dies and the next one starts", World.start_driver),
    (r"(\S+) joins(, checked)?", World.joins),
    (r"(\S+) reconnects", World.reconnects),
    (r"the agent of (\S+) restarts", World.agent_restarts),
    (r"(\S+) is gone( as planned)?: (.+)", World.gone),
    (r"(\S+) falls silent", World.silenced),
    (r"(\S+) is heard again", World.heard_again),
    (r"the ranks stall", World.stalls),
    (r"the ranks go on", World.goes_on),
    (r"rank (\d+) on (\S+) killed by (SIG\w+)", World.killed),
    (r"rank (\d+) on (\S+) raises (\w+)(?: of step (\d+), attempt (\d+))?: (.+)", World.raises),
    (r"rank (\d+) on (\S+) exits with code (\d+)", World.exits),
    (r"every rank exits with code (\d+)", World.all_exit),
    (r"checkpoint of step (\d+) committed(?: by attempt (\d+))?", World.committed),
    (r"([A-Z]\w+) done(?:, not reaped: (.+))?", World.done),
    (r"([A-Z]\w+) fails(?: on ([^:]+))?: (.+)", World.fails),
    (r"([A-Z]\w+) refused: (.+)", World.refused),
    (r"the probe finds (\S+) (sound|unsound|unclear)(?:: (.+))?", World.probed),
    (r"the checks find that (\S+) computes wrong numbers: (.+)", World.convicted),
    (r"(\S+) tells: rank (\d+) in state (\w), phase (\w+), (\d+) collectives", World.evidence),
    (r"(xid|ecc|nvlink|pcie|nic|disk|memory|thermal|drain)(?: (\d+))? on (\S+): (.+)", World.hardware),
    (r"a person asks to (\w+)(?: (\S+))?: (.+)", World.asks),
    (r"the loss becomes (\S+)", World.loss_becomes),
    (r"(\S+) computes (\d+)% slower", World.slows),
    (r"end", World.ends),
)


def play(text: str) -> tuple[str, list[str]]:
    """The transcript with its decisions as they come out now, and the event log that it makes."""
    script = [line for line in text.splitlines() if not line.startswith(INDENT)]
    world = _begin(script)
    out: list[str] = []
    for line in script:
        out.append(line)
        told = re.fullmatch(r"at (\S+) (.+)", line)
        if told:
            moment = world.zero + float(told[1])
            world.live_until(moment)
            out[-1:-1] = _taken(world, None)
            _say(world, told[2])
            out += _taken(world, f"[{float(told[1]):.1f}] ")
    return "\n".join(out) + "\n", world.log


def _taken(world: World, known: str | None) -> Iterator[str]:
    """The changes noted since the last call; the time is left out where the line above tells it."""
    lines, world.lines = world.lines, []
    return (INDENT + (line.removeprefix(known) if known else line) for line in lines)


def _say(world: World, sentence: str) -> None:
    for pattern, act in _SENTENCES:
        found = re.fullmatch(pattern, sentence)
        if found:
            act(world, *found.groups())
            return
    raise ValueError(f"no such sentence: {sentence!r}")


def _begin(script: list[str]) -> World:
    """Read the header, and bring the job where the scenario begins."""
    settings: dict[str, Any] = {}
    overrides: list[RecoveryOverride] = []
    labels: dict[str, str] = {}
    step, commits = 0, list[int]()
    for line in script:
        key, _, value = line.partition(": ")
        if key == "policy":
            settings |= dict(_setting(item) for item in value.split(", "))
        elif key == "override":
            action, *fields = value.split(", ")
            overrides.append(RecoveryOverride(action, **dict(field.split(" ", 1) for field in fields)))
        elif key.startswith("switch "):
            labels |= dict.fromkeys(value.split(), key.removeprefix("switch "))
        elif key == "given":
            numbers = [int(number) for number in re.findall(r"\d+", value)]
            step, commits = numbers[0], numbers[1:]
    nodes = settings.get("nodes", 1)
    policy = Policy(**{"min_nodes": nodes, "steps": 1000, **settings, "overrides": tuple(overrides)})
    world = World(policy, labels)
    if step:
        _train_until(world, step, commits)
    return world


def _train_until(world: World, step: int, commits: list[int]) -> None:
    world.start_driver()
    world.done("Acquire", None)
    for index in range(world.core.policy.nodes + world.core.policy.spare_nodes):
        world.joins(f"node-{index}", None)
    world.done("Launch", None)
    while world.step < step:
        world.live_until(world.now + 1.0)
        if world.step in commits:
            world.committed(str(world.step), None)
    world.zero = world.now
    world.lines = []


def _setting(item: str) -> tuple[str, Any]:
    name, value = item.split(" ", 1)
    kind = get_type_hints(Policy)[name]
    if kind in (int, float):
        return name, kind(value)
    if kind is bool:
        return name, value == "true"
    words = value.split()
    if name == "budgets":
        return name, {cause: int(count) for cause, count in zip(words[::2], words[1::2], strict=True)}
    return name, tuple(int(word) if word.isdigit() else word for word in words)


def _picture(core: Core) -> dict[str, Any]:
    """What the reader of a transcript is told about, by subject."""
    record = core.record
    open_one = [record.incident] if record.incident else []
    return {
        "stage": str(record.state),
        "incidents": {i.id: dataclasses.replace(i, evidence=[*i.evidence], milestones=dict(i.milestones))
                      for i in (*record.incidents, *open_one)},
        "restarts charged": {cause: (str(n),) for cause, n in record.restarts.items() if n},
        "blame": {node: (f"{blame.score:.2f}", blame.at) for node, blame in record.blame.items()},
        "trusted only before step": {f"attempt {a}": (str(s),) for a, s in record.tainted.items()},
        "in shadow": {name: (str(n),) for name, n in record.shadowed.items()},
    }  # fmt: skip


def _differences(before: dict[str, Any], after: dict[str, Any], zero: float) -> Iterator[str]:
    for name, incident in after["incidents"].items():
        yield from _incident_changes(before["incidents"].get(name), incident, zero)
    for subject in ("restarts charged", "blame", "trusted only before step", "in shadow"):
        for name in sorted(before[subject].keys() | after[subject].keys()):
            value = after[subject].get(name, ("0",))
            forgotten = subject == "trusted only before step" and name not in after[subject]
            if value != before[subject].get(name, ("0",)) and not forgotten:
                yield f"{subject}: {name} {value[0]}"
    if after["stage"] != before["stage"]:
        yield f"{before['stage']} -> {after['stage']}"


def _incident_changes(before: Incident | None, after: Incident, zero: float) -> Iterator[str]:
    where = f" on {after.node}" if after.node else ""
    where += f" rank {after.rank}" if after.rank is not None else ""
    if before is None:
        echo = ", maybe an echo" if after.consequence else ""
        yield f"{after.id} opens: {after.cause}{where}{echo}: {after.reason}"
    elif (before.cause, before.node) != (after.cause, after.node) or not before.reason.startswith(
        after.reason
    ):
        yield f"{after.id} becomes: {after.cause}{where}: {after.reason}"
    if before is None or not after.outcome:
        for line in after.evidence[len(before.evidence) if before else 0 :]:
            yield f"{after.id} evidence: {line}"
    decided = (before.action, before.decision) if before else ("", "")
    if after.action and (after.action != decided[0] or not decided[1].startswith(after.decision)):
        yield f"{after.id} decides {after.action}: {after.decision}"
    if after.outcome and not (before and before.outcome):
        stages = ", ".join(
            f"{name} {time.at - zero:.1f}{'' if time.source == 'observed' else ' ' + time.source}"
            for name, time in after.milestones.items()
        )
        yield f"{after.id} closes: {after.outcome} ({stages})"


def _effect_text(effect: fx.Effect) -> str:
    shown = []
    for field in dataclasses.fields(effect):
        value = getattr(effect, field.name)
        if field.name not in ("effect_id", "reason", "lineage") and value not in ("", (), None, 0):
            shown.append(f"{field.name} {_value_text(value)}")
    what = f" ({', '.join(shown)})" if shown else ""
    return f"{type(effect).__name__} {effect.effect_id}{what}: {effect.reason}"


def _value_text(value: Any) -> str:
    if isinstance(value, Commit):
        return f"step {value.step} of attempt {value.attempt}"
    return (
        " ".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
