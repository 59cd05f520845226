"""Whatever happens in whatever order: the invariants of the design hold, and the log replays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replaying import mismatches

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Command
from megascale.core.eventlog import Entry, Header, entry_line, header_line, parse_line
from megascale.core.machine import Core
from megascale.core.state.record import JobState

NODES = [f"n-{i}" for i in range(6)]
nodes = st.sampled_from(NODES)
POLICY = Policy(
    nodes=3,
    spare_nodes=1,
    min_nodes=2,
    node_counts=(3, 2),
    steps=50,
    shrink_after_s=30.0,
    grow_after_s=40.0,
    startup_s=60.0,
)

actions = st.one_of(
    st.tuples(st.just("join"), nodes, st.booleans()),
    st.tuples(st.just("rejoin"), nodes, st.booleans()),
    st.tuples(st.just("gone"), nodes, st.booleans()),
    st.tuples(st.just("heartbeats"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("exit"), st.integers(0, 2), st.sampled_from([0, 76, 1, -9, -6])),
    st.tuples(st.just("all_exit"), st.sampled_from([0, 76]), st.just(0)),
    st.tuples(st.just("answer"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("refuse"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("commit"), st.integers(0, 50), st.integers(-2, 0)),
    st.tuples(st.just("command"), st.sampled_from(["evict", "release", "save", "suspend", "resume"]), nodes),
    st.tuples(st.just("xid"), nodes, st.sampled_from([79, 94, 63, 74])),
    st.tuples(st.just("drain"), nodes, st.just(0)),
    st.tuples(st.just("probe"), nodes, st.sampled_from([True, False, None])),
    st.tuples(st.just("evidence"), nodes, st.sampled_from(["S", "T", "D"])),
    st.tuples(st.just("spec"), st.booleans(), st.booleans()),
    st.tuples(st.just("pause"), st.sampled_from([1.0, 8.0, 400.0]), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("tick"), st.just(0), st.just(0)),
)
scripts = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 5.0, 11.0, 70.0]), actions), max_size=80)


class World:
    """Plays arbitrary events to a core and keeps its log."""

    def __init__(self) -> None:
        self.core, self.now, self.term = Core(POLICY), 1000.0, 0
        self.incarnation = dict.fromkeys(NODES, 1)
        self.lines: list[str] = []
        self.begin()

    def begin(self) -> None:
        snapshot = json.loads(json.dumps(self.core.snapshot())) if self.term else None
        self.lines.append(header_line(Header("job", self.core.policy, snapshot)))
        if snapshot is not None:
            self.core = Core.restore(self.core.policy, snapshot)
        self.term += 1
        self.tell(ev.DriverStarted(self.term))

    def tell(self, event: ev.Event) -> None:
        effects = self.core.step(event, self.now)
        self.lines.append(entry_line(Entry(self.now, event, tuple(effects))))
        self.check(effects)

    def check(self, effects: list[fx.Effect]) -> None:
        record = self.core.record
        for effect in effects:
            if isinstance(effect, fx.Launch) and effect.attempt == record.attempt:
                assert not set(effect.nodes) & set(record.excluded)
                assert len(set(effect.nodes)) == len(effect.nodes) in (2, 3)
                assert effect.resume is None or effect.resume not in record.distrusted
        if record.state is JobState.FINISHED:
            assert record.finish_state
        elif record.state is not JobState.SUSPENDED:
            assert self.core.next_deadline() is not None, record.state
        ledger = record.ledger
        assert ledger.wall_s() == pytest.approx(ledger.since - ledger.started_at)
        assert record.outstanding >= 0

    def name(self, node: str) -> str:
        return f"{node}/{self.incarnation[node]}"

    def act(self, action: str, first, second) -> None:
        getattr(self, f"on_{action}")(first, second)

    def on_join(self, node, checked):
        attempt = self.core.record.attempt if checked else 0
        self.tell(ev.NodeJoined(node, self.name(node), attempt, checked=checked))

    def on_rejoin(self, node, checked):
        self.incarnation[node] += 1
        self.tell(ev.NodeJoined(node, self.name(node), checked=checked))

    def on_gone(self, node, planned):
        self.tell(ev.NodeGone(node, self.name(node), "gone", at=self.now, planned=planned))

    def on_heartbeats(self, steps, everyone):
        record = self.core.record
        step = self.core.live.step + steps
        for rank, node in enumerate(record.assignment[: None if everyone else 1]):
            progress = ev.RankProgress(
                rank, step, "forward", self.now, 1.0, 0.0, self.now, self.now, self.now, 2.0
            )
            self.tell(ev.NodeReport(node, self.name(node), record.attempt, (progress,)))

    def on_exit(self, rank, code):
        record = self.core.record
        if rank < len(record.assignment):
            node = record.assignment[rank]
            exit_code, signal = (code, None) if code >= 0 else (None, -code)
            message = "Connection reset by peer" if rank == 0 else "boom"
            error = "RuntimeError" if code == 1 else ""
            self.tell(
                ev.RankExited(
                    node,
                    self.name(node),
                    record.attempt,
                    rank,
                    exit_code,
                    signal,
                    self.now,
                    error_type=error,
                    error_message=message,
                )
            )

    def on_all_exit(self, code, _):
        for rank in range(len(self.core.record.assignment)):
            self.on_exit(rank, code)

    def on_answer(self, index, good):
        pending = list(self.core.record.pending)
        if pending:
            effect_id = pending[index % len(pending)]
            unreaped = list(self.core.record.assignment[:1]) if not good else []
            done = ev.EffectDone(effect_id, {"unreaped": unreaped})
            self.tell(done if good or index % 2 else ev.EffectFailed(effect_id, "no", tuple(unreaped)))

    def on_refuse(self, index, _):
        pending = list(self.core.record.pending)
        if pending:
            self.tell(ev.FleetRefused(pending[index % len(pending)], "no quota"))

    def on_commit(self, step, back):
        self.tell(ev.CommitDone(step, max(0, self.core.record.attempt + back), self.now))

    def on_command(self, command, node):
        self.tell(ev.ManualCommand(Command(command), "why", node))

    def on_xid(self, node, code):
        self.tell(ev.HardwareEvent(node, "xid", code, at=self.now))

    def on_drain(self, node, _):
        self.tell(ev.HardwareEvent(node, "drain", at=self.now))

    def on_probe(self, node, healthy):
        pending = [i for i, p in self.core.record.pending.items() if p.kind == "Probe"]
        self.tell(ev.ProbeResult(pending[0] if pending else "e-0", node, healthy))

    def on_evidence(self, node, state):
        self.tell(ev.Evidence(self.core.live.evidence_id or "e-0", node, (ev.RankEvidence(0, state),)))

    def on_spec(self, suspend, restart):
        policy = Policy(**{**{f: getattr(POLICY, f) for f in POLICY.__slots__}, "suspend": suspend})
        self.tell(ev.SpecChanged(policy, f"r{self.now}", restart))

    def on_pause(self, gap_s, _):
        self.now += gap_s
        self.tell(ev.DriverPaused(gap_s))

    def on_restart(self, _first, _second):
        self.begin()

    def on_tick(self, _first, _second):
        deadline = self.core.next_deadline()
        self.now = max(self.now, deadline or self.now)
        self.tell(ev.Tick())


@settings(max_examples=150, deadline=None)
@given(scripts)
def test_invariants_hold_and_the_log_replays(script):
    world = World()
    for seconds, (action, first, second) in script:
        world.now += seconds
        world.act(action, first, second)
    assert mismatches(world.lines) == []


@settings(max_examples=40, deadline=None)
@given(scripts)
def test_job_left_alone_comes_to_an_end(script):
    """Nobody answers any more and time passes: the job ends, or is suspended."""
    world = World()
    for seconds, (action, first, second) in script:
        world.now += seconds
        world.act(action, first, second)
    for _ in range(4000):
        if world.core.record.state in (JobState.FINISHED, JobState.SUSPENDED):
            break
        world.on_tick(0, 0)
    assert world.core.record.state in (JobState.FINISHED, JobState.SUSPENDED)


def test_changed_decision_is_found_by_replay(running):
    core = Core(Policy(nodes=1, min_nodes=1))
    lines = [header_line(Header("job", core.policy, None))]
    story = (ev.DriverStarted(1), ev.NodeJoined("n-0", "x"))
    lines += [entry_line(Entry(5.0, event, tuple(core.step(event, 5.0)))) for event in story]
    assert mismatches(lines) == []
    changed = [lines[0], lines[1], lines[2].replace("n-0", "n-1", 1)]
    (mismatch,) = mismatches(changed)
    assert mismatch.line == 3


def test_no_field_is_called_like_the_tag():
    assert not [kind for kind in (*ev.Event.__args__, *fx.Effect.__args__) if "kind" in kind.__slots__]


def test_every_kind_of_line_comes_back_equal():
    entry = Entry(
        3.25,
        ev.NodeReport("n", "x", 2, (ev.RankProgress(0, 5, loss=2.5, grad_norm=float("inf")),)),
        (fx.Launch("e-1", "why", 2, ("n",), None, {1: None}), fx.Page("e-2", "look")),
    )
    assert parse_line(entry_line(entry)) == entry


@pytest.mark.parametrize(
    "line", ["", "{", '{"at": 1}', '{"at":1,"event":{"kind":"NodeGone"}}', '{"header":{"job":1}}']
)
def test_torn_or_misshapen_lines_are_refused(line):
    with pytest.raises((ValueError, KeyError)):
        parse_line(line)
