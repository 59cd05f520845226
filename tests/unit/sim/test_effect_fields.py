"""The simulator uses every field of an effect, or says why it does not."""

from __future__ import annotations

from typing import Any

import pytest
from effect_samples import ATTEMPT, CASES, EFFECTS, IDS, NODES, with_other

from megascale.core.contract import effects as fx
from megascale.core.contract.policy import Policy
from megascale.sim.delays import constant
from megascale.sim.driver import SimDriver
from megascale.sim.effects import UNUSED, perform
from megascale.sim.training import Workload
from megascale.sim.world import World, WorldSpec

STAGES = ("network", "boot", "kill", "reap", "answer", "evidence", "probe", "nodeCheck", "clean", "acquire")


def stage() -> tuple[SimDriver, list[Any]]:
    """Three nodes of a job, and what its driver is told."""
    delays = {name: constant(0.25) for name in (*STAGES, "fork", "groups", "load", "firstStep", "commit")}
    work = Workload(steps=1000, step_s=1.0, every_steps=5)
    world = World(WorldSpec(Policy(nodes=3), work, 5, delays, launch_timeout_s=20.0), 1, lambda *_: None)
    told: list[Any] = []
    driver = SimDriver(world.cluster, world.store, lambda *_: None, lambda _: None)
    driver.feed = lambda event: told.append((world.queue.now, event))  # type: ignore[method-assign]
    world.network.driver = driver.feed
    cluster = world.cluster
    for machine, name in zip(list(cluster.machines.values()), ("n0", "n1", "n2", "n8", "n9"), strict=True):
        machine.name = name
        cluster.machines[name] = machine
        if name in ("n0", "n1", "n2"):
            cluster.fleet.pool.remove(machine)
            machine.held = True
            machine.boot()
    return driver, told


def outcome(effect: fx.Effect) -> tuple[Any, ...]:
    """What the world looks like half a minute later, and what the driver heard on the way."""
    driver, told = stage()
    queue, cluster = driver.cluster.queue, driver.cluster
    if not isinstance(effect, fx.Launch):
        perform(driver, fx.Launch("e-0", "", ATTEMPT, NODES, None))
        while queue.run_next(queue.now + 5.0) and ATTEMPT not in cluster.runs:
            pass
        _run(driver, 5.0)
        cluster.machines["n0"].stuck = isinstance(effect, fx.Kill)
        cluster.machines["n0"].defect = "wrong"
        cluster.wrong_numbers = frozenset({"wrong"} if isinstance(effect, fx.CheckNodes) else ())
        cluster.machines["n2"].defect = "wrong"
    perform(driver, effect)
    _run(driver, 30.0)
    machines = cluster.machines.values()
    return (
        told,
        {n: (r.nodes, r.resume, r.position(), r.ended, r.blocked) for n, r in cluster.runs.items()},
        [(m.name, m.held, m.incarnation, m.killed, m.launched, sorted(m.ranks)) for m in machines],
        dict(cluster.storage.landed),
        (cluster.fleet.avoid, cluster.fleet.owed),
    )  # fmt: skip


def _run(driver: SimDriver, seconds: float) -> None:
    end = driver.cluster.queue.now + seconds
    while driver.cluster.queue.run_next(end):
        pass


@pytest.mark.parametrize(("effect", "name"), CASES, ids=IDS)
def test_a_field_changes_the_world_or_is_listed_as_unused(effect: fx.Effect, name: str) -> None:
    has_effect = outcome(effect) != outcome(with_other(effect, name))
    listed = UNUSED.get(type(effect), {}).get(name, "")
    assert has_effect is not bool(listed), listed or "the field changes nothing and is not listed in UNUSED"


def test_every_kind_of_effect_is_listed() -> None:
    assert set(UNUSED) == {type(effect) for effect in EFFECTS}
