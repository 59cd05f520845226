"""The failure process of a scenario: when nodes fail, of what, and which symptoms that has."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from megascale.core.contract.events import HardwareEvent
from megascale.sim.delays import Distribution
from megascale.sim.machines import RUNNING, UNINTERRUPTIBLE, Machine
from megascale.sim.scenario import FaultClass, Scenario
from megascale.sim.summary import Summary
from megascale.sim.training import Run
from megascale.sim.world import World

DAY_S = 86400.0
FALSE_SILENCE, FALSE_HANG = "falseSilence", "falseHang"


@dataclass(slots=True)
class Injection:
    """A fault that was injected.

    Attributes:
        again: the defect was there before and shows again.
        incident, last: the first and the last incident it led to; evidence that comes later opens another.
    """

    at: float
    kind: str
    node: str
    again: bool = False
    incident: str = ""
    last: str = ""


class FailureProcess:
    """Injects faults into random nodes, at the scenario's rate, until the campaign ends.

    Times and kinds of the faults depend on the seed alone and not on the policy: policies are compared
    under the same faults.
    """

    def __init__(self, world: World, scenario: Scenario, seed: object, injections: list[Injection]) -> None:
        self._world, self._scenario, self._seed = world, scenario, seed
        self._rng = random.Random(f"{seed}/failures")
        self._recurs: Distribution = scenario.failures.recurs.distribution()
        self._classes = {each.name: each for each in scenario.failures.classes}
        self.injections = injections
        nonsense = (each.name for each in scenario.failures.classes if each.symptom == "nan")
        world.cluster.wrong_numbers = frozenset(nonsense)
        world.cluster.check_recall = scenario.failures.check_recall
        world.cluster.listeners.append(self._on_run)

    def start(self) -> None:
        failures, nodes = self._scenario.failures, self._scenario.nodes
        self._repeat("faults", nodes * failures.per_node_day / DAY_S, self._strike_someone)
        false_silences_per_s = nodes * failures.false_silence_per_node_hour / 3600.0
        self._repeat(FALSE_SILENCE, false_silences_per_s, lambda _: self._false_silence())
        self._repeat(FALSE_HANG, failures.false_hang_per_hour / 3600.0, lambda _: self._false_hang())

    def _repeat(self, name: str, rate_per_s: float, action: Callable[[random.Random], None]) -> None:
        """A Poisson process with a source of randomness of its own."""
        if rate_per_s <= 0 or not math.isfinite(rate_per_s):
            return
        rng = random.Random(f"{self._seed}/failures/{name}")

        def again() -> None:
            action(rng)
            self._world.queue.after(rng.expovariate(rate_per_s), again)

        self._world.queue.after(rng.expovariate(rate_per_s), again)

    def _victim(self) -> tuple[Run, Machine] | None:
        """A node of the newest run that still has its ranks."""
        runs = self._world.cluster.runs
        if not runs:
            return None
        run = runs[max(runs)]
        machine = self._world.cluster.machines[self._rng.choice(run.nodes)]
        return (run, machine) if machine.run is run and machine.ranks else None

    def _strike_someone(self, rng: random.Random) -> None:
        classes = self._scenario.failures.classes
        chosen = rng.choices(classes, [each.weight for each in classes])[0]
        persistent = rng.random() < chosen.persistent
        found = self._victim()
        if found is None:
            return
        _, machine = found
        if persistent:
            machine.defect = chosen.name
        self._strike(chosen, machine)

    def _on_run(self, run: Run) -> None:
        """A defect shows again some time after the node is used again."""
        if not run.is_stepping or run.blocked or run.announced:
            return
        run.announced = True
        for name in run.nodes:
            machine = self._world.cluster.machines[name]
            if machine.defect in self._classes:
                delay = self._recurs.sample(self._rng)
                self._world.queue.after(delay, lambda m=machine: self._recur(run, m))  # type: ignore[misc]

    def _recur(self, run: Run, machine: Machine) -> None:
        if machine.run is run and machine.ranks and machine.defect and not run.blocked:
            self._strike(self._classes[machine.defect], machine, again=True)

    def _note(self, kind: str, machine: Machine, *, again: bool = False) -> None:
        machine.faulted_at = self._world.queue.now
        self.injections.append(Injection(self._world.queue.now, kind, machine.name, again))

    def _strike(self, fault: FaultClass, machine: Machine, *, again: bool = False) -> None:
        run = machine.run
        if run is None:
            return
        self._note(fault.name, machine, again=again)
        cluster, rank = self._world.cluster, self._rng.choice(list(machine.ranks))
        self._inspect(fault, machine)
        if fault.symptom in ("crash", "userError"):
            error = (fault.error_type, fault.text) if fault.error_type else ("", "")
            if fault.error_type:
                cluster.exit_rank(machine, rank, exit_code=1, error=error)
            else:
                cluster.exit_rank(machine, rank, signal=6)
        elif fault.symptom == "nodeDown":
            self._node_down(machine, planned=False)
        elif fault.symptom == "drain":
            self._node_down(machine, planned=True)
        elif fault.symptom == "flap":
            self._block_for(run, self._world.delays.sample("flap"))
        elif fault.symptom == "nan":
            run.poison(math.nan)
        else:
            machine.behind = fault.symptom == "hang"
            if fault.symptom == "hang":
                machine.ranks[rank] = UNINTERRUPTIBLE if self._rng.random() < 0.2 else RUNNING
            run.block(f"{fault.name} on {machine.name}")

    def _inspect(self, fault: FaultClass, machine: Machine) -> None:
        """What the next rounds of the node's inspection find."""
        world = self._world
        sign = "xid" if fault.xid is not None else fault.sign
        if not sign:
            return
        stage = "networkEvent" if sign == "nic" else "hardwareEvent"
        rounds = 2 if sign == "nic" else 1
        when = world.queue.now
        for _ in range(rounds):
            when += world.delays.sample(stage)
            event = HardwareEvent(machine.name, sign, fault.xid, fault.line, at=when)
            world.queue.at(when, partial(world.cluster.network.send, machine, event))

    @property
    def _summary(self) -> Summary:
        reporter = self._world.cluster.reporter
        if not isinstance(reporter, Summary):
            raise TypeError("failures at event fidelity need the summarised reports")
        return reporter

    def _node_down(self, machine: Machine, *, planned: bool) -> None:
        incarnation = machine.incarnation
        self._world.cluster.power_off(machine)
        notice = 0.0 if planned else self._world.delays.sample("fleetNotice")
        reason = "drained for maintenance" if planned else "the node is gone"
        self._world.queue.after(
            notice,
            lambda: self._world.cluster.fleet_notices(machine, incarnation, reason, planned=planned),
        )

    def _block_for(self, run: Run, seconds: float) -> None:
        why = f"flap at {self._world.queue.now}"
        run.block(why)
        self._world.queue.after(seconds, lambda: run.unblock(why))

    def _false_silence(self) -> None:
        """The heartbeats of a sound node stay away for longer than the bound, though it trains on."""
        found = self._victim()
        if found is None:
            return
        _, machine = found
        self.injections.append(Injection(self._world.queue.now, FALSE_SILENCE, machine.name))
        machine.linked = False
        self._summary.silent(machine)
        self._world.queue.after(30.0, lambda: self._relink(machine))

    def _relink(self, machine: Machine) -> None:
        machine.linked = True
        self._world.cluster.join(machine)
        self._summary.joined(machine)

    def _false_hang(self) -> None:
        """A step takes unusually long, without anything being broken."""
        found = self._victim()
        if found is None:
            return
        run, machine = found
        self.injections.append(Injection(self._world.queue.now, FALSE_HANG, machine.name))
        self._block_for(run, self._world.delays.sample("longStep"))
