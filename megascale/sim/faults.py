"""Faults as data: what goes wrong when, and how each is injected into a simulated cluster.

A fault names its target by number, so that the same list can be cut down to the few that matter.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from megascale.core.contract.events import LogMatch, ManualCommand, SnapshotReady, SpecChanged
from megascale.core.contract.lineage import Commit, newest
from megascale.core.contract.vocabulary import Command
from megascale.sim.machines import STOPPED, UNINTERRUPTIBLE, Machine
from megascale.sim.training import Run

if TYPE_CHECKING:
    from megascale.sim.world import World


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at: seconds after the start; kind: a key of `KINDS`.
        target: picks the victim, modulo how many there are; value: how bad, 0 to 1.
    """

    at: float
    kind: str
    target: int
    value: float

    def __str__(self) -> str:
        return f"{self.at:8.2f} s  {self.kind} (target {self.target}, value {self.value:.2f})"


def inject(world: World, fault: Fault) -> None:
    """Inject the fault now."""
    KINDS[fault.kind](world, fault)


def _victim(world: World, fault: Fault) -> Machine | None:
    """A machine the job holds, or None when it holds none."""
    held = [machine for machine in world.cluster.machines.values() if machine.held]
    return held[fault.target % len(held)] if held else None


def _rank(world: World, fault: Fault) -> tuple[Machine, Run, int] | None:
    """A rank of the newest attempt."""
    runs = world.cluster.runs
    run = runs[max(runs)] if runs else None
    if run is None:
        return None
    found = [
        (world.cluster.machines[name], run, rank)
        for name in run.nodes
        if world.cluster.machines[name].run is run
        for rank in world.cluster.machines[name].ranks
    ]
    return found[fault.target % len(found)] if found else None


def _rank_killed(world: World, fault: Fault) -> None:
    if found := _rank(world, fault):
        machine, _, rank = found
        world.cluster.exit_rank(machine, rank, signal=9 if fault.value < 0.5 else 11)


def _user_error(world: World, fault: Fault) -> None:
    if found := _rank(world, fault):
        machine, _, rank = found
        world.cluster.exit_rank(machine, rank, exit_code=1, error=("ValueError", "bad batch"))


def _power_loss(world: World, fault: Fault) -> None:
    """A node dies; the fleet notices some time later, or never."""
    machine = _victim(world, fault)
    if machine is None:
        return
    incarnation = machine.incarnation
    world.cluster.power_off(machine)
    if fault.value < 0.6:
        after = 60.0 * fault.value
        world.queue.after(
            after,
            lambda: world.cluster.fleet_notices(machine, incarnation, "the node is gone", planned=False),
        )


def _preempted(world: World, fault: Fault) -> None:
    machine = _victim(world, fault)
    if machine is not None:
        incarnation = machine.incarnation
        world.cluster.power_off(machine)
        world.cluster.fleet_notices(machine, incarnation, "preempted", planned=True)


def _agent_restart(world: World, fault: Fault) -> None:
    machine = _victim(world, fault)
    if machine is not None and machine.incarnation:
        machine.stop_agent()
        world.queue.after(5.0 * fault.value, lambda: world.cluster.boot(machine))


def _partition(world: World, fault: Fault) -> None:
    """Agent and driver cannot reach each other; ranks train on."""
    machine = _victim(world, fault)
    if machine is not None and machine.linked:
        machine.linked = False
        world.queue.after(60.0 * fault.value, lambda: _relink(world, machine))


def _great_partition(world: World, fault: Fault) -> None:
    """The driver loses every node that trains; a zombie attempt goes on without it."""
    runs = world.cluster.runs
    for name in runs[max(runs)].nodes if runs else ():
        machine = world.cluster.machines[name]
        if machine.linked:
            machine.linked = False
            world.queue.after(120.0 * fault.value, lambda m=machine: _relink(world, m))  # type: ignore[misc]


def _relink(world: World, machine: Machine) -> None:
    machine.linked = True
    world.cluster.join(machine)


def _stream_break(world: World, fault: Fault) -> None:
    machine = _victim(world, fault)
    if machine is not None and machine.linked:
        machine.linked = False
        world.queue.after(2.0 * fault.value, lambda: _relink(world, machine))


def _rank_stopped(world: World, fault: Fault) -> None:
    if found := _rank(world, fault):
        machine, run, rank = found
        machine.ranks[rank] = STOPPED
        run.block(f"rank {rank} stopped")


def _stuck_in_kernel(world: World, fault: Fault) -> None:
    """A rank hangs in a system call; it cannot be killed either."""
    if found := _rank(world, fault):
        machine, run, rank = found
        machine.ranks[rank] = UNINTERRUPTIBLE
        machine.stuck = True
        run.block(f"rank {rank} stuck")


def _deadlock(world: World, fault: Fault) -> None:
    """Every rank waits; at most a count of collectives shows which one is at fault."""
    if found := _rank(world, fault):
        machine, run, rank = found
        machine.behind = fault.value < 0.5
        run.block(f"deadlock at rank {rank}")


def _flap(world: World, fault: Fault) -> None:
    """A link goes down and comes back by itself, most often before anything is decided."""
    if found := _rank(world, fault):
        _, run, rank = found
        why = f"flap {fault.target} at {rank}, {fault.at}"
        run.block(why)
        world.queue.after(60.0 * fault.value**2, lambda: run.unblock(why))


def _damaged_checkpoint(world: World, fault: Fault) -> None:
    """Bytes of the commit that would be restored next rot, and a rank dies."""
    record = world.driver.core.record
    readable = newest(world.storage.landed, record.lineage, record.attempt)
    if readable is not None:
        world.storage.damaged.add(readable)
        _rank_killed(world, fault)


def _storage_outage(world: World, fault: Fault) -> None:
    world.storage.outage_until = world.queue.now + 90.0 * fault.value


def _unlaunchable(world: World, fault: Fault) -> None:
    machine = _victim(world, fault)
    if machine is not None:
        machine.defect = "unlaunchable"
        _rank_killed(world, fault)


def _spare_dead(world: World, fault: Fault) -> None:
    """A node that holds no ranks dies, so that it is not there when it is needed."""
    idle = [m for m in world.cluster.machines.values() if m.held and m.run is None]
    if idle:
        world.cluster.power_off(idle[fault.target % len(idle)])


def _fleet_closed(world: World, fault: Fault) -> None:
    world.cluster.fleet.closed_until = world.queue.now + 120.0 * fault.value


def _slow_start(world: World, fault: Fault) -> None:
    """The newest attempt does not get through its start-up for a while."""
    runs = world.cluster.runs
    if runs and not runs[max(runs)].is_stepping:
        run = runs[max(runs)]
        run.block("slow start")
        world.queue.after(200.0 * fault.value, lambda: run.unblock("slow start"))


def _clock_skew(world: World, fault: Fault) -> None:
    machine = _victim(world, fault)
    if machine is not None:
        machine.skew_s = 240.0 * (fault.value - 0.5)


def _driver_killed(world: World, _: Fault) -> None:
    world.driver.die()


def _driver_cut(world: World, fault: Fault) -> None:
    """The driver dies between two of its next effects, or between deciding and writing the record."""
    driver = world.driver
    driver.cut.effect = driver.performed + fault.target % 4
    driver.cut.unwritten = fault.value < 0.4


def _driver_paused(world: World, fault: Fault) -> None:
    """A driver freezes, another takes over, and the first wakes up believing it is in charge."""
    world.usurp(wakes_after_s=20.0 * fault.value)


def _stale_commit(world: World, fault: Fault) -> None:
    """A rank of an earlier attempt, not killed in time, commits now."""
    runs = sorted(world.cluster.runs)
    if len(runs) > 1:
        run = world.cluster.runs[runs[fault.target % (len(runs) - 1)]]
        every = run.work.every_steps
        step = (run.position()[0] // every + 1) * every
        if step <= run.work.steps:
            world.storage.land(Commit(step, run.attempt))


def _lost_commit(world: World, fault: Fault) -> None:
    """For a while nobody is notified of new commits."""
    listener, world.storage.on_landed = world.storage.on_landed, lambda _: None
    if listener is not world.storage.on_landed:
        world.queue.after(60.0 * fault.value, lambda: setattr(world.storage, "on_landed", listener))


def _noise(world: World, fault: Fault) -> None:
    """Messages that must not change anything: for unknown nodes, old attempts, effects never issued."""
    name = f"node-{fault.target % 7}"
    world.network.publish(LogMatch(name, "benign", "benign", "none", "hello"))
    world.network.publish(SnapshotReady(name, fault.target % 3, 5))


def _command(command: Command) -> Callable[[World, Fault], None]:
    def give(world: World, fault: Fault) -> None:
        machine = _victim(world, fault)
        node = machine.name if machine is not None else "node-0"
        world.network.publish(ManualCommand(command, "a person asked", node=node, by="op"))
        if command is Command.SUSPEND:
            resume = ManualCommand(Command.RESUME, "a person asked", by="op")
            world.queue.after(40.0 * fault.value, lambda: world.network.publish(resume))

    return give


def _respec(world: World, fault: Fault) -> None:
    """Thresholds are changed while the job runs; sometimes it is suspended by its spec for a while."""
    policy = world.driver.core.policy
    changed = dataclasses.replace(policy, silence_s=policy.silence_s * (0.8 + 0.4 * fault.value))
    suspended = fault.value < 0.3
    world.network.publish(SpecChanged(dataclasses.replace(changed, suspend=True) if suspended else changed))
    if suspended:
        world.queue.after(60.0 * fault.value, lambda: world.network.publish(SpecChanged(changed)))


KINDS: Final[dict[str, Callable[[World, Fault], None]]] = {
    "rankKilled": _rank_killed,
    "userError": _user_error,
    "powerLoss": _power_loss,
    "preempted": _preempted,
    "agentRestart": _agent_restart,
    "partition": _partition,
    "greatPartition": _great_partition,
    "streamBreak": _stream_break,
    "rankStopped": _rank_stopped,
    "stuckInKernel": _stuck_in_kernel,
    "deadlock": _deadlock,
    "flap": _flap,
    "damagedCheckpoint": _damaged_checkpoint,
    "storageOutage": _storage_outage,
    "unlaunchable": _unlaunchable,
    "spareDead": _spare_dead,
    "fleetClosed": _fleet_closed,
    "slowStart": _slow_start,
    "clockSkew": _clock_skew,
    "driverKilled": _driver_killed,
    "driverCut": _driver_cut,
    "driverPaused": _driver_paused,
    "staleCommit": _stale_commit,
    "lostCommit": _lost_commit,
    "noise": _noise,
    "evict": _command(Command.EVICT),
    "release": _command(Command.RELEASE),
    "save": _command(Command.SAVE),
    "suspend": _command(Command.SUSPEND),
    "stop": _command(Command.STOP),
    "respec": _respec,
}


def draw(rng: random.Random, horizon_s: float) -> list[Fault]:
    """A random list of faults; often a second one follows the first at once."""
    names = [name for name in KINDS if name != "stop"]
    faults: list[Fault] = []
    for _ in range(rng.randrange(1, 7)):
        at = rng.uniform(0.0, horizon_s)
        faults.append(Fault(at, rng.choice(names), rng.randrange(1000), rng.random()))
        while rng.random() < 0.4:
            at += rng.choice((0.0, 0.01, 0.5, 5.0)) * rng.random()
            faults.append(Fault(at, rng.choice(names), rng.randrange(1000), rng.random()))
    if rng.random() < 0.03:
        faults.append(Fault(rng.uniform(0.0, horizon_s), "stop", 0, 0.0))
    return sorted(faults, key=lambda fault: fault.at)
