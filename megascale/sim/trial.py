"""One deterministic trial: a seed gives a job, a hostile environment and a list of faults."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from megascale.core.contract.events import ManualCommand, SpecChanged
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.core.eventlog import Entry
from megascale.core.state.record import JobState
from megascale.sim.delays import Distribution, uniform
from megascale.sim.driver import SimDriver
from megascale.sim.faults import Fault, draw, inject
from megascale.sim.invariants import Invariants, ViolatedError
from megascale.sim.network import Loss
from megascale.sim.training import Workload
from megascale.sim.world import EPOCH_S, World, WorldSpec

TIME_LIMIT_S = 6 * 3600.0
EVENT_LIMIT = 100_000
PATIENCE_S = 300.0


@dataclass(slots=True)
class Outcome:
    """How a trial ended.

    Attributes:
        violation: the invariant that broke, None if none did.
        entries: decision log, (term, entry) in order.
    """

    seed: int
    faults: tuple[Fault, ...]
    violation: str | None = None
    state: FinishState | None = None
    reason: str = ""
    attempts: int = 0
    events: int = 0
    entries: list[tuple[int, Entry]] = field(default_factory=list)


def _hostile_delays(rng: random.Random) -> dict[str, Distribution]:
    """Durations of every kind, some seeds quick and some slow."""
    slow = rng.choice((0.2, 1.0, 3.0))
    return {
        "network": uniform(0.001, rng.choice((0.01, 0.5, 3.0))),
        "boot": uniform(0.1, 4 * slow),
        "fork": uniform(0.01, slow),
        "kill": uniform(0.01, slow),
        "reap": uniform(0.01, 2 * slow),
        "exit": uniform(0.0, 0.5 * slow),
        "echo": uniform(0.0, 2 * slow),
        "groups": uniform(0.1, 3 * slow),
        "load": uniform(0.1, 3 * slow),
        "firstStep": uniform(0.1, 4 * slow),
        "evidence": uniform(0.1, 4 * slow),
        "probe": uniform(0.1, 3 * slow),
        "answer": uniform(0.0, slow),
        "acquire": uniform(0.1, 10 * slow),
        "clean": uniform(1.0, 20.0),
        "repair": uniform(30.0, 300.0),
        "commit": uniform(0.05, rng.choice((0.2, 5.0, 20.0))),
        "reconnect": uniform(0.0, 2.0),
        "driverDown": uniform(0.1, rng.choice((2.0, 30.0))),
    }


def spec_of(seed: int) -> WorldSpec:
    """The job and the environment of a seed."""
    rng = random.Random(f"{seed}/spec")
    nodes = rng.choice((1, 2, 2, 3, 4))
    spares = rng.choice((0, 0, 1, 2))
    least = rng.choice((nodes, nodes, max(1, nodes - 1)))
    policy = Policy(
        nodes=nodes,
        spare_nodes=spares,
        min_nodes=least,
        ranks_per_node=rng.choice((1, 1, 2)),
        node_counts=tuple(range(least, nodes + 1)),
        steps=rng.randrange(20, 60),
        startup_s=120.0,
        silence_s=rng.choice((10.0, 15.0)),
        flap_tolerance_s=rng.choice((5.0, 30.0)),
        save_s=20.0,
        max_restarts=rng.choice((4, 100)),
        budgets={"user_code": 2} if rng.random() < 0.3 else {},
        max_nodes_per_hour=rng.choice((1, 3)),
        acquire_tries=12,
        shrink_after_s=rng.choice((5.0, 60.0)),
        quarantine=rng.random() < 0.3,
    )
    work = Workload(
        steps=policy.steps,
        step_s=rng.choice((0.5, 1.0, 2.0)),
        every_steps=rng.choice((4, 5, 10)),
        save_stall_s=rng.choice((0.0, 0.3)),
        step_noise=rng.choice((0.0, 0.05)),
    )
    bad = rng.random() < 0.6
    loss = Loss(rng.choice((0.02, 0.1)), rng.choice((0.05, 0.3))) if bad else Loss()
    return WorldSpec(
        policy,
        work,
        machines=nodes + spares + rng.choice((0, 1, 3, 6)),
        delays=_hostile_delays(rng),
        heartbeat_s=2.0,
        loss=loss,
        echo=rng.random() < 0.7,
        driver_skew_s=rng.choice((0.0, 0.0, 2.0)),
        checks_returns=rng.random() < 0.5,
    )


def faults_of(seed: int) -> tuple[Fault, ...]:
    rng = random.Random(f"{seed}/faults")
    return tuple(draw(rng, rng.choice((30.0, 90.0))))


def run_trial(seed: int, faults: Sequence[Fault] | None = None, *, keep_log: bool = False) -> Outcome:
    """Run one seed to its end with every invariant checked after every event.

    Args:
        faults: in place of the seed's own list.
        keep_log: keep every entry, not just the count.
    """
    chosen = tuple(faults) if faults is not None else faults_of(seed)
    outcome = Outcome(seed, chosen)
    invariants = Invariants()

    def observe(driver: SimDriver, entry: Entry) -> None:
        outcome.events += 1
        if keep_log:
            outcome.entries.append((driver.term, entry))
        invariants.check(driver, entry)

    world = World(spec_of(seed), seed, observe)
    for fault in chosen:
        world.queue.at(EPOCH_S + fault.at, lambda m=fault: inject(world, m))  # type: ignore[misc]
    world.queue.after(PATIENCE_S, lambda: _resume_if_suspended(world))
    try:
        world.start()
        world.run(TIME_LIMIT_S, lambda: outcome.events > EVENT_LIMIT)
        if not world.ended:
            raise ViolatedError(_stuck(world))
        invariants.completed_means_all_steps(world)
    except ViolatedError as violated:
        outcome.violation = str(violated)
    record = world.driver.core.record
    outcome.state, outcome.reason = record.finish_state, record.finish_reason
    outcome.attempts = record.attempt
    return outcome


def _resume_if_suspended(world: World) -> None:
    """A person resumes a job that has been suspended for long."""
    core = world.driver.core
    if core.record.state is JobState.SUSPENDED:
        world.network.publish(SpecChanged(dataclasses.replace(core.policy, suspend=False)))
        world.network.publish(ManualCommand(Command.RESUME, "it was suspended long enough", by="op"))
    world.queue.after(PATIENCE_S, lambda: _resume_if_suspended(world))


def _stuck(world: World) -> str:
    record = world.driver.core.record
    return f"the job did not end within {TIME_LIMIT_S:g} s: {record.state}, timers {record.deadlines}"


def transcript(outcome: Outcome) -> str:
    """Faults and decision log of a trial in time order, readable."""
    lines = [
        (EPOCH_S + m.at, f"{m.at:9.3f}  !! {m.kind} target={m.target} {m.value:.2f}") for m in outcome.faults
    ]
    for term, entry in outcome.entries:
        if entry.effects or type(entry.event).__name__ not in ("NodeReport", "Tick", "EffectDone"):
            text = f"{entry.at - EPOCH_S:9.3f}  [{term}] {_shown(entry)}"
            lines.append((entry.at, text))
    ordered = [text for _, text in sorted(lines, key=lambda line: line[0])]
    return "\n".join([*ordered, f"violated: {outcome.violation}" if outcome.violation else "no violation"])


def _shown(entry: Entry) -> str:
    event = repr(entry.event)
    effects = "".join(f"\n{'':15}-> {effect!r}" for effect in entry.effects)
    return f"{event[:200]}{effects}"
