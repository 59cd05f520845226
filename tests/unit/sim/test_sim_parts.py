from __future__ import annotations

import random

import pytest

from megascale.core.contract.events import NodeReport
from megascale.core.contract.lineage import Commit
from megascale.sim.delays import Delays, Distribution, constant, uniform
from megascale.sim.event_queue import EventQueue
from megascale.sim.fleet import Fleet
from megascale.sim.machines import Machine
from megascale.sim.network import Loss, Network
from megascale.sim.storage import Storage
from megascale.sim.training import Run, Workload


def test_agenda_runs_in_order_of_time_then_of_scheduling() -> None:
    queue, seen = EventQueue(10.0), list[str]()
    queue.after(2.0, lambda: seen.append("late"))
    queue.at(11.0, lambda: seen.append("first"))
    queue.at(11.0, lambda: seen.append("second"))
    queue.at(5.0, lambda: seen.append("past"))
    queue.after(1.5, lambda: seen.append("never")).cancel()
    while queue.run_next(20.0):
        pass
    assert seen == ["past", "first", "second", "late"]
    assert queue.now == 20.0


def test_agenda_stops_at_the_given_time() -> None:
    queue, seen = EventQueue(), list[float]()
    queue.at(5.0, lambda: seen.append(queue.now))
    assert not queue.run_next(4.0)
    assert (queue.now, seen) == (4.0, [])
    assert queue.run_next(5.0)
    assert seen == [5.0]


def test_lognormal_has_the_median_and_tail_it_is_given() -> None:
    rng = random.Random(1)
    found = sorted(Distribution("lognormal", 60.0, 300.0).sample(rng) for _ in range(20_000))
    assert found[10_000] == pytest.approx(60.0, rel=0.05)
    assert found[19_800] == pytest.approx(300.0, rel=0.1)


def test_delays_are_stretched_and_unnamed_ones_take_no_time() -> None:
    delays = Delays(random.Random(0), {"boot": constant(3.0), "kill": uniform(1.0, 2.0)}, stretch=2.0)
    assert delays.sample("boot") == 6.0
    assert 2.0 <= delays.sample("kill") <= 4.0
    assert delays.sample("unheard of") == 0.0


def _network(loss: Loss) -> tuple[EventQueue, Network, list[object]]:
    queue, seen = EventQueue(), list[object]()
    delays = Delays(random.Random(1), {"network": uniform(0.0, 5.0)})
    network = Network(queue, delays, random.Random(2), loss)
    network.driver = seen.append
    return queue, network, seen


def test_beats_get_lost_doubled_and_overtaken_but_streams_keep_their_order() -> None:
    queue, network, seen = _network(Loss(drop=0.2, duplicate=0.2))
    machine = Machine("node-0")
    for number in range(200):
        network.heartbeat(machine, NodeReport("node-0", "heartbeat", number))
    while queue.run_next(100.0):
        pass
    heartbeats = [event.attempt for event in seen if isinstance(event, NodeReport)]
    assert set(heartbeats) < set(range(200))
    assert len(heartbeats) > len(set(heartbeats))
    assert heartbeats != sorted(heartbeats)
    seen.clear()
    for number in range(200):
        network.send(machine, NodeReport("node-0", "stream", number))
    while queue.run_next(2000.0):
        pass
    told = [event.attempt for event in seen if isinstance(event, NodeReport)]
    assert told == sorted(told)
    assert set(told) == set(range(200))


def test_nothing_passes_a_broken_link() -> None:
    queue, network, seen = _network(Loss())
    machine = Machine("node-0", incarnation="x", linked=False)
    network.send(machine, NodeReport("node-0", "x"))
    network.command(machine, lambda _: seen.append("command"))
    while queue.run_next(100.0):
        pass
    assert not seen


def test_fleet_grants_what_it_has_and_owes_the_rest() -> None:
    queue, granted = EventQueue(), list[str]()
    fleet = Fleet(queue, Delays(random.Random(0)), lambda machine: granted.append(machine.name))
    first, second, third = (Machine(f"node-{n}") for n in range(3))
    fleet.pool = [first]
    assert fleet.acquire(2, avoid=()) == ""
    assert granted == ["node-0"]
    fleet.give_back(second, 10.0, checked=False)
    while queue.run_next(20.0):
        pass
    assert granted == ["node-0", "node-1"]
    assert fleet.acquire(1, avoid=()) == "no free node"
    fleet.pool = [third]
    assert fleet.acquire(1, avoid=["node-2"]) == "no free node"
    third.checked = True
    assert fleet.acquire(1, avoid=["node-2"]) == ""


class _Watcher:
    def __init__(self) -> None:
        self.left: list[int] = []
        self.failed: list[Commit] = []

    def run_changed(self, run: Run) -> None: ...

    def ranks_left(self, _: Run, exit_code: int) -> None:
        self.left.append(exit_code)

    def load_failed(self, _: Run, commit: Commit) -> None:
        self.failed.append(commit)


def _run(work: Workload, resume: Commit | None = None) -> tuple[EventQueue, Storage, _Watcher, Run]:
    queue = EventQueue()
    stages = {"groups": constant(1.0), "load": constant(2.0), "firstStep": constant(3.0)}
    storage, watcher = Storage(queue), _Watcher()
    delays = Delays(random.Random(0), stages)
    run = Run(1, ("node-0",), resume, work=work, queue=queue, delays=delays, storage=storage, watcher=watcher)
    run.forked_on("node-0")
    return queue, storage, watcher, run


def _until(queue: EventQueue, seconds: float) -> None:
    while queue.run_next(seconds):
        pass


def test_a_run_passes_its_milestones_saves_and_ends() -> None:
    queue, storage, watcher, run = _run(Workload(steps=10, step_s=2.0, every_steps=4, save_stall_s=1.0))
    _until(queue, 9.0)
    assert run.reached == {"groups": 1.0, "loaded": 3.0, "firstStep": 6.0}
    assert run.position() == (2, 8.0)
    _until(queue, 100.0)
    assert sorted(storage.landed) == [Commit(4, 1), Commit(8, 1)]
    assert watcher.left == [0]
    assert run.position()[0] == 10
    # nine steps after the first, and two saves
    assert run.progress().progress_at == 6.0 + 9 * 2.0 + 2 * 1.0


def test_a_blocked_run_keeps_the_part_of_the_step_it_had() -> None:
    queue, _, _, run = _run(Workload(steps=100, step_s=2.0, every_steps=50))
    _until(queue, 11.5)
    assert run.position() == (3, 10.0)
    run.block("flap")
    _until(queue, 31.5)
    assert run.position() == (3, 10.0)
    run.unblock("flap")
    _until(queue, 32.0)
    assert run.position() == (4, 32.0)


def test_a_damaged_checkpoint_cannot_be_loaded() -> None:
    queue, storage, watcher, run = _run(Workload(steps=10, step_s=1.0, every_steps=5), Commit(5, 0))
    storage.damaged.add(Commit(5, 0))
    _until(queue, 100.0)
    assert watcher.failed == [Commit(5, 0)]
    assert "load" not in run.reached


def test_saving_on_request_and_leaving() -> None:
    queue, storage, watcher, run = _run(Workload(steps=100, step_s=2.0, every_steps=50))
    _until(queue, 11.0)
    run.request_save(then_stop=True)
    _until(queue, 40.0)
    assert watcher.left == [76]
    assert list(storage.landed) == [Commit(4, 1)]


def test_memory_snapshots_cost_their_share_of_every_step() -> None:
    work = Workload(steps=1000, step_s=2.0, every_steps=500, memory_every=2, memory_stall_s=0.5)
    queue, _, _, run = _run(work)
    _until(queue, 6.0 + 4 * 2.25)
    assert run.position()[0] == 5
    assert run.memory_commit() == Commit(4, 1)
    assert run.progress().stall_seconds == pytest.approx(5 * 0.25)
