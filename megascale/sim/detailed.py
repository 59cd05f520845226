"""Detailed fidelity: every heartbeat, step and segment time with noise, to measure the detectors themselves.

It measures how often a detector accuses a sound node, and how long it takes to notice a faulty one. The
results are what simulations by event, which skip quiet times, assume.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from megascale.core.contract import effects as fx
from megascale.core.contract.events import LogMatch, SegmentTimes
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Action, Cause, Detector
from megascale.core.eventlog import Entry
from megascale.core.state.record import Incident, JobState
from megascale.sim.campaign import ENDLESS_STEPS
from megascale.sim.delays import Distribution, constant
from megascale.sim.driver import SimDriver
from megascale.sim.machines import STOPPED, Machine
from megascale.sim.network import Loss
from megascale.sim.scenario import Scenario
from megascale.sim.training import Run, Workload
from megascale.sim.world import World, WorldSpec

HOUR_S: Final = 3600.0
HEARTBEAT_S: Final = 2.0
STEP_NOISE: Final = 0.01
SEGMENT_NOISE: Final = 0.02
LOSS: Final = Loss(drop=1e-3, duplicate=1e-3)
NETWORK: Final = Distribution("lognormal", 0.005, 0.5)
_DETECTORS: Final = {
    Cause.NODE_LOST: Detector.SILENCE,
    Cause.HANG: Detector.HANG,
    Cause.STRAGGLER: Detector.STRAGGLER,
    Cause.NUMERICS: Detector.NUMERICS,
}
_LOG_LINES_PER_NODE_HOUR: Final = 6.0
_WARM_UP_S: Final = 600.0
_PATIENCE_S: Final = 1800.0
_ROUNDS: Final = 5


@dataclass(slots=True)
class Quiet:
    """A stretch without any fault: whatever is decided is wrong. `suspicions` were cleared by a probe."""

    nodes: int
    hours: float
    verdicts: dict[str, int] = field(default_factory=dict)
    suspicions: dict[str, int] = field(default_factory=dict)

    @property
    def node_hours(self) -> float:
        return self.nodes * self.hours

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "hours": self.hours,
            "nodeHours": self.node_hours,
            "falseVerdicts": {name: self._rate(self.verdicts.get(name, 0)) for name in _DETECTORS.values()},
            "falseSuspicions": {
                name: self._rate(self.suspicions.get(name, 0)) for name in ("silence", "straggler")
            },
        }

    def _rate(self, count: int) -> dict[str, float]:
        """Counted, per node-hour, and the upper end of the 95% interval (rule of three for none)."""
        upper = count + 3.0 if count == 0 else count + 2.0 * count**0.5 + 2.0
        return {
            "count": count,
            "perNodeHour": count / self.node_hours,
            "upper95": upper / self.node_hours,
        }


@dataclass(slots=True)
class Measured:
    """False verdicts of quiet stretches, and seconds from fault to detection by kind of fault."""

    quiet: list[Quiet]
    delays: dict[str, list[float | None]]

    def to_json(self) -> dict[str, Any]:
        return {
            "quiet": [stretch.to_json() for stretch in self.quiet],
            "detectionDelay": {name: _delay_json(found) for name, found in self.delays.items()},
        }

    def to_text(self) -> list[str]:
        lines = []
        for stretch in self.quiet:
            lines.append(f"{stretch.nodes} nodes for {stretch.hours:g} h without a fault")
            for name, rate in stretch.to_json()["falseVerdicts"].items():
                lines.append(
                    f"  {name:10} {rate['count']} false verdicts, at most {rate['upper95']:.2g} per node-hour"
                )
        lines.append("seconds from fault to detection (median of the rounds, worst)")
        for name, found in self.delays.items():
            delay = _delay_json(found)
            lines.append(
                f"  {name:12} {delay['p50Seconds']} / {delay['maxSeconds']}, missed {delay['missed']}"
            )
        return lines


def _delay_json(found: list[float | None]) -> dict[str, Any]:
    seen = [delay for delay in found if delay is not None]
    return {
        "rounds": len(found),
        "missed": len(found) - len(seen),
        "p50Seconds": round(statistics.median(seen), 2) if seen else None,
        "maxSeconds": round(max(seen), 2) if seen else None,
    }


def measure(
    scenario: Scenario, seed: int, *, small: tuple[int, float] = (64, 2.0), large_minutes: float = 10.0
) -> Measured:
    """Quiet hours on a few nodes, quiet minutes on all of them, then faults one by one."""
    nodes, hours = min(scenario.nodes, small[0]), small[1]
    quiet = [_quiet(scenario, seed, nodes, hours)]
    if scenario.nodes > nodes:
        quiet.append(_quiet(scenario, seed, scenario.nodes, large_minutes / 60.0))
    delays: dict[str, list[float | None]] = {}
    for kind, injection in FAULTS.items():
        delays[kind] = [_delay(scenario, f"{seed}/{kind}/{n}", injection) for n in range(_ROUNDS)]
    return Measured(quiet, delays)


def _quiet(scenario: Scenario, seed: object, nodes: int, hours: float) -> Quiet:
    stretch = Quiet(nodes, hours)
    counted: set[str] = set()

    def observe(driver: SimDriver, entry: Entry) -> None:
        record = driver.core.record
        for incident in (*record.incidents[-1:], *((record.incident,) if record.incident else ())):
            if incident.id not in counted:
                counted.add(incident.id)
                _count(stretch, incident)
        for effect in entry.effects:
            if isinstance(effect, fx.Probe):
                kind = "straggler" if effect.effect_id in driver.core.live.probes else "silence"
                stretch.suspicions[kind] = stretch.suspicions.get(kind, 0) + 1

    noisy = Noisy(scenario, seed, nodes, observe)
    noisy.world.start()
    noisy.world.run(hours * HOUR_S + _WARM_UP_S)
    return stretch


def _count(stretch: Quiet, incident: Incident) -> None:
    """A false verdict is one that something was done about."""
    name = _DETECTORS.get(incident.cause)
    if name is not None and incident.action not in (None, Action.NONE):
        stretch.verdicts[name] = stretch.verdicts.get(name, 0) + 1


class Noisy:
    """A world with heartbeats, jitter, losses, uneven steps and segment times."""

    def __init__(
        self, scenario: Scenario, seed: object, nodes: int, observe: Callable[[SimDriver, Entry], None]
    ) -> None:
        delays = {name: stage.distribution() for name, stage in scenario.durations.items()}
        policy = Policy(nodes=nodes, spare_nodes=2, min_nodes=nodes, steps=ENDLESS_STEPS, max_restarts=10_000)
        work = Workload(
            steps=ENDLESS_STEPS,
            step_s=scenario.step_seconds,
            every_steps=max(1, round(scenario.checkpoints.every_seconds / scenario.step_seconds)),
            save_stall_s=scenario.checkpoints.stall_seconds,
            step_noise=STEP_NOISE,
        )
        quick = {"boot": constant(1.0), "network": NETWORK}
        spec = WorldSpec(
            policy,
            work,
            machines=nodes + 4,
            delays=delays | quick,
            heartbeat_s=HEARTBEAT_S,
            loss=LOSS,
            echo=False,
            launch_timeout_s=HOUR_S,
        )
        self.rng = random.Random(f"{seed}/noise")
        self.world = World(spec, f"detailed/{seed}", observe)
        self.world.cluster.listeners.append(self._on_run)
        rate = nodes * _LOG_LINES_PER_NODE_HOUR / HOUR_S
        self.world.queue.after(self.rng.expovariate(rate), lambda: self._say_something(rate))

    def _on_run(self, run: Run) -> None:
        if run.is_stepping and not run.announced:
            run.announced = True
            self.world.queue.after(run.pace, lambda: self._segments(run))

    def _segments(self, run: Run) -> None:
        """Report the compute seconds of every rank once a step."""
        if run.ended or run is not self.world.cluster.runs[max(self.world.cluster.runs)]:
            return
        if not run.blocked:
            machines = self.world.cluster.machines
            base = 0.6 * run.work.step_s
            compute = tuple(
                base * machines[name].slowdown * self.rng.gauss(1.0, SEGMENT_NOISE) for name in run.nodes
            )
            self.world.network.publish(SegmentTimes(run.attempt, run.position()[0], compute))
        self.world.queue.after(run.pace, lambda: self._segments(run))

    def _say_something(self, rate: float) -> None:
        """Lines that agents pass on although nothing follows from them."""
        node = f"node-{self.rng.randrange(len(self.world.cluster.machines))}"
        self.world.network.publish(LogMatch(node, "ecc-corrected", "benign", "none", "corrected ECC error"))
        self.world.queue.after(self.rng.expovariate(rate), lambda: self._say_something(rate))


def _delay(scenario: Scenario, seed: str, injection: Callable[[World, Machine], None]) -> float | None:
    """Seconds until an incident is opened (or, for a slow node, a probe asked for); None = never."""
    injected_at: list[float] = []
    seen: list[float] = []

    def observe(driver: SimDriver, entry: Entry) -> None:
        record = driver.core.record
        asked = any(isinstance(effect, fx.Probe) for effect in entry.effects)
        if injected_at and not seen and (record.incident is not None or asked):
            seen.append(entry.at - injected_at[0])

    noisy = Noisy(scenario, seed, min(scenario.nodes, 16), observe)
    world = noisy.world
    world.start()
    world.run(_WARM_UP_S)
    if world.driver.core.record.state is not JobState.RUNNING:
        return None
    machine = world.cluster.machines[noisy.rng.choice(world.driver.core.record.assignment)]

    def hit() -> None:
        injected_at.append(world.queue.now)
        injection(world, machine)

    world.queue.after(noisy.rng.uniform(0, 60), hit)
    world.run(_PATIENCE_S, lambda: bool(seen))
    return seen[0] if seen else None


def _crash(world: World, machine: Machine) -> None:
    world.cluster.exit_rank(machine, next(iter(machine.ranks)), signal=11)


def _node_down(world: World, machine: Machine) -> None:
    world.cluster.power_off(machine)


def _stopped_rank(_: World, machine: Machine) -> None:
    rank = next(iter(machine.ranks))
    machine.ranks[rank] = STOPPED
    if machine.run is not None:
        machine.run.block(f"rank {rank} stopped")


def _nan(_: World, machine: Machine) -> None:
    if machine.run is not None:
        machine.run.poison(float("nan"))


def _slow(factor: float) -> Callable[[World, Machine], None]:
    def injection(_: World, machine: Machine) -> None:
        machine.slowdown = factor

    return injection


FAULTS: Final[dict[str, Callable[[World, Machine], None]]] = {
    "crash": _crash,
    "nodeDown": _node_down,
    "stoppedRank": _stopped_rank,
    "nan": _nan,
    "slow10": _slow(1.1),
    "slow20": _slow(1.2),
}
