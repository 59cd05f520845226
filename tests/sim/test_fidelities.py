"""Heartbeat by heartbeat or summarised: the same small scenario leads to the same decisions."""

from __future__ import annotations

import dataclasses
import re

import pytest

from megascale.core.contract.policy import Policy
from megascale.core.eventlog import Entry
from megascale.sim.delays import constant
from megascale.sim.driver import SimDriver
from megascale.sim.faults import Fault, inject
from megascale.sim.training import Workload
from megascale.sim.world import EPOCH_S, World, WorldSpec

SPEC = WorldSpec(
    Policy(nodes=4, spare_nodes=2, min_nodes=4, steps=900, reconnect_grace_s=0.0),
    Workload(steps=900, step_s=1.0, every_steps=50),
    machines=10,
    delays={
        "network": constant(0.01),
        "boot": constant(2.0),
        "fork": constant(3.0),
        "groups": constant(2.0),
        "load": constant(2.0),
        "firstStep": constant(4.0),
        "kill": constant(0.1),
        "reap": constant(1.0),
        "evidence": constant(1.0),
        "probe": constant(0.5),
        "acquire": constant(5.0),
        "repair": constant(3600.0),
        "clean": constant(60.0),
        "commit": constant(5.0),
    },
    echo=False,
)
FAULTS = {
    "crash": [Fault(105.0, "rankKilled", 1, 0.9)],
    "node_lost": [Fault(105.0, "powerLoss", 2, 0.9)],
    "two_nodes": [Fault(105.0, "powerLoss", 2, 0.9), Fault(190.0, "powerLoss", 3, 0.9)],
    "stopped_rank": [Fault(105.0, "rankStopped", 3, 0.5)],
    "silent_collective": [Fault(105.0, "deadlock", 3, 0.1)],
    "no_clue": [Fault(105.0, "deadlock", 3, 0.9)],
    "flap": [Fault(105.0, "flap", 3, 0.2)],
    "user_error": [Fault(105.0, "userError", 3, 0.2)],
    "damaged": [Fault(185.0, "damagedCheckpoint", 1, 0.2)],
    "evicted": [Fault(105.0, "evict", 1, 0.2)],
}


def _decisions(*, summarised: bool, faults: list[Fault]) -> list[str]:
    """Kinds, nodes and reasons of all effects, and the incidents; figures in words left out."""
    told: list[str] = []

    def observe(_: SimDriver, entry: Entry) -> None:
        told.extend(
            f"{type(effect).__name__} {getattr(effect, 'nodes', '')} {re.sub('[0-9.]+ s', '', effect.reason)}"
            for effect in entry.effects
        )

    world = World(dataclasses.replace(SPEC, summarised=summarised), 3, observe)
    for fault in faults:
        world.queue.at(EPOCH_S + fault.at, lambda m=fault: inject(world, m))
    world.start()
    world.run(3600.0)
    record = world.driver.core.record
    incidents = [(i.cause, i.node, i.action, i.outcome.split()[0]) for i in record.incidents]
    return [*told, *map(str, incidents), record.finish_state]


@pytest.mark.parametrize("name", FAULTS)
def test_both_fidelities_decide_the_same(name: str) -> None:
    detailed = _decisions(summarised=False, faults=FAULTS[name])
    summarised = _decisions(summarised=True, faults=FAULTS[name])
    assert summarised == detailed
    assert detailed[-1] == "completed"
    assert len(detailed) > 3
