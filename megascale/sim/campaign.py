"""Simulates a scenario from start to end with the real core."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from megascale.core.contract import effects as fx
from megascale.core.contract.events import ManualCommand
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Cause, Command
from megascale.core.eventlog import Entry, Header, entry_line, header_line
from megascale.core.state.record import Incident, JobState
from megascale.sim.delays import Distribution
from megascale.sim.driver import SimDriver
from megascale.sim.failures import DAY_S, FailureProcess, Injection
from megascale.sim.machines import Machine
from megascale.sim.scenario import Scenario, under_policy
from megascale.sim.training import Workload
from megascale.sim.world import EPOCH_S, World, WorldSpec

OUR_POLICIES = ("ours", "no-spares")
"""The others mimic what is published; node checks after wrong numbers are ours."""
ENDLESS_STEPS = 1_000_000_000
_SEARCH_BACK_S = 3600.0
_SAME_FAULT_S = 120.0
_LAUNCH_TIMEOUT_S = 3600.0
_NEW_DRIVER_S = 60.0
_BLAMELESS_AFTER_S = DAY_S
_ALLOCATIONS_PER_COLLECTION = 200_000


@dataclass(slots=True)
class Ledger:
    """What happened in a campaign.

    Attributes:
        phases: (time since the start, phase) at every change of the goodput phase.
        steps: distinct steps that the surviving history holds; wall_s: simulated seconds.
        injections: injected faults; incidents: what the core made of them, by id.
        failures: ends of the job that nobody wanted; manual: when a person had to act.
        unfounded: exclusions of nodes into which no fault was injected within a day.
    """

    begun: float = EPOCH_S
    wall_s: float = 0.0
    steps: int = 0
    step_s: float = 0.0
    phases: list[tuple[float, str]] = field(default_factory=list)
    goodput: dict[str, float] = field(default_factory=dict)
    injections: list[Injection] = field(default_factory=list)
    incidents: dict[str, Incident] = field(default_factory=dict)
    restarts: int = 0
    pages: list[tuple[float, str]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    manual: list[float] = field(default_factory=list)
    exclusions: int = 0
    unfounded: list[str] = field(default_factory=list)
    events: int = 0
    spent_s: float = 0.0


def policy_of(scenario: Scenario, thresholds: dict[str, float]) -> Policy:
    """The policy of a scenario: defaults, its sizes, and what it names."""
    policy = Policy(
        nodes=scenario.nodes,
        spare_nodes=scenario.spares,
        min_nodes=scenario.nodes,
        ranks_per_node=scenario.gpus_per_node,
        steps=ENDLESS_STEPS,
        max_restarts=1_000_000,
        startup_s=1800.0,
        reconnect_grace_s=0.0,
    )
    values = {name: getattr(policy, name) for name in Policy.__dataclass_fields__}
    typed = {name: type(values[name])(value) for name, value in thresholds.items()}
    return Policy(**{**values, **typed})


class Campaign:
    """Builds the world of a scenario and runs it; one use."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        policy: str = "ours",
        seed: int = 0,
        stretch: float = 1.0,
        write: Callable[[str], None] | None = None,
    ) -> None:
        scenario, thresholds = under_policy(scenario, policy)
        self.scenario, self.ledger = scenario, Ledger(step_s=scenario.step_seconds)
        self._write = write
        self._seen_phase = ""
        self._asked: set[str] = set()
        spec = WorldSpec(
            policy_of(scenario, {"check_numbers": policy in OUR_POLICIES} | thresholds),
            _work_of(scenario),
            machines=scenario.fleet_nodes or scenario.nodes + scenario.spares + max(8, scenario.nodes // 20),
            delays=_delays_of(scenario),
            stretch=stretch,
            echo=False,
            summarised=True,
            launch_timeout_s=_LAUNCH_TIMEOUT_S,
        )
        self.world = World(spec, f"{scenario.name}/{seed}", self._observe)
        self.failures = FailureProcess(
            self.world, scenario, f"{scenario.name}/{seed}", self.ledger.injections
        )
        if write is not None:
            write(header_line(Header(scenario.name, spec.policy, None)))

    def run(self) -> Ledger:
        """Simulate the scenario's days; the ledger of what happened."""
        begun = time.perf_counter()
        world, ledger = self.world, self.ledger
        end = EPOCH_S + self.scenario.days * DAY_S
        self.failures.start()
        world.start()
        with _seldom_collected():
            while world.queue.run_next(end):
                pass
        core = world.driver.core
        account = core.record.ledger
        account.charge(end)
        ledger.goodput = {str(phase): seconds for phase, seconds in account.seconds.items()}
        ledger.wall_s = end - EPOCH_S
        runs = world.cluster.runs
        ledger.steps = runs[max(runs)].position()[0] if runs else 0
        ledger.restarts = max(0, core.record.attempt - 1)
        ledger.spent_s = time.perf_counter() - begun
        return ledger

    def _observe(self, driver: SimDriver, entry: Entry) -> None:
        ledger, record = self.ledger, driver.core.record
        ledger.events += 1
        if self._write is not None:
            self._write(entry_line(entry))
        since = entry.at - EPOCH_S
        if record.ledger.phase != self._seen_phase:
            self._seen_phase = record.ledger.phase
            ledger.phases.append((since, str(record.ledger.phase)))
        if record.incident is not None and record.incident.id not in ledger.incidents:
            ledger.incidents[record.incident.id] = record.incident
            _attribute(ledger, record.incident, entry.at)
        for effect in entry.effects:
            if isinstance(effect, fx.Page):
                ledger.pages.append((since, effect.reason))
                self._maybe_evict_by_hand(record.incident)
            elif isinstance(effect, fx.Exclude):
                self._judge_exclusion(effect.node, entry.at)
            elif isinstance(effect, fx.Finish):
                ledger.failures.append((since, effect.reason))
                ledger.manual.append(self.world.queue.now)
                self._call_a_person()

    def _judge_exclusion(self, node: str, at: float) -> None:
        machine: Machine = self.world.cluster.machines[node]
        self.ledger.exclusions += 1
        if machine.faulted_at < at - _BLAMELESS_AFTER_S:
            self.ledger.unfounded.append(node)

    def _maybe_evict_by_hand(self, incident: Incident | None) -> None:
        """The person who is paged evicts a node that keeps failing, once it is known which one it is.

        Automation may be at a bound, or may know only that some node computes wrong numbers: then a replay
        in two phases has to be run by hand.
        """
        node = incident.node if incident is not None else None
        if incident is not None and incident.cause == Cause.NUMERICS:
            node = self._computes_nonsense()
        machine = self.world.cluster.machines.get(node) if node is not None else None
        if machine is None or not machine.defect or machine.name in self._asked:
            return
        self._asked.add(machine.name)
        self.ledger.manual.append(self.world.queue.now)
        evict = ManualCommand(
            Command.EVICT, "it keeps failing and automation is at its bound", machine.name, by="on-call"
        )
        self.world.queue.after(self.world.delays.sample("person"), lambda: self._evict(machine, evict))

    def _computes_nonsense(self) -> str | None:
        kinds = {each.name for each in self.scenario.failures.classes if each.symptom == "nan"}
        held = (machine for machine in self.world.cluster.machines.values() if machine.run is not None)
        return next((machine.name for machine in held if machine.defect in kinds), None)

    def _evict(self, machine: Machine, command: ManualCommand) -> None:
        self._asked.discard(machine.name)
        if machine.defect:
            self.world.network.publish(command)

    def _call_a_person(self) -> None:
        """The job failed: somebody repairs what is broken and starts it again."""
        self.world.queue.after(self.world.delays.sample("person"), self._reopen)

    def _reopen(self) -> None:
        for machine in self.world.cluster.machines.values():
            machine.defect = None
        if self.world.driver.core.record.state is JobState.FINISHED:
            self.world.driver.die()
            reopen = ManualCommand(Command.REOPEN, "a person repaired the cause", by="on-call")
            self.world.queue.after(_NEW_DRIVER_S, lambda: self.world.network.publish(reopen))


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Collect garbage far less often: nearly all objects of a campaign are freed by their reference count."""
    usual = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _attribute(ledger: Ledger, incident: Incident, at: float) -> None:
    """Note which injected fault is behind an incident: the newest on its node, else the newest of all."""
    open_ones = [s for s in ledger.injections if not s.incident and at - _SEARCH_BACK_S <= s.at <= at]
    same_node = [injection for injection in open_ones if injection.node == incident.node]
    known = [
        s for s in ledger.injections if s.incident and s.node == incident.node and at - s.at < _SAME_FAULT_S
    ]
    if same_node or (open_ones and not known):
        found = (same_node or open_ones)[-1]
        found.incident = found.last = incident.id
    elif known:
        known[-1].last = incident.id


def _work_of(scenario: Scenario) -> Workload:
    checkpoints = scenario.checkpoints
    return Workload(
        steps=ENDLESS_STEPS,
        step_s=scenario.step_seconds,
        every_steps=max(1, round(checkpoints.every_seconds / scenario.step_seconds)),
        save_stall_s=checkpoints.stall_seconds,
        memory_every=checkpoints.memory_every_steps,
        memory_stall_s=checkpoints.memory_stall_seconds,
    )


def _delays_of(scenario: Scenario) -> dict[str, Distribution]:
    return {name: stage.distribution() for name, stage in scenario.durations.items()}
