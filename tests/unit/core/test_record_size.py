"""The job record stays within 64 KiB at 1,536 nodes with long names, whatever happened."""

from __future__ import annotations

import json

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.names import pack, unpack
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.core.state.record import JobState

LIMIT = 64 * 1024


def name(index: int) -> str:
    return f"ip-10-{index // 256}-{index % 256}-{index * 37 % 251}.eu-central-1.compute.internal"


def size_of(job) -> int:
    return len(json.dumps(job.core.snapshot()))


def test_record_of_1536_nodes_stays_small_through_a_hard_life(start):
    job = start(
        1536,
        spare_nodes=160,
        max_nodes_per_hour=1000,
        max_restarts=10**6,
        no_progress_limit=10**6,
        quarantine=True,
    )
    job.edited = True
    nodes = [name(i) for i in range(1696)]
    for node in nodes:
        job.incarnations[node] = "8c6f5a4e"
        job.join(node)
    largest = size_of(job)
    record = job.record
    for index in range(160):
        job.done(fx.Launch)
        job.record.state = JobState.RUNNING
        job.heartbeat(record.assignment[0], step=job.core.live.step + 1)
        job.commit(job.core.live.step)
        node = record.assignment[index * 7]
        long = "RuntimeError: " + "something long that a rank had to say " * 30
        job.exit(index * 7, 1, error="RuntimeError", message=long, tail=(long,) * 10)
        job.goes(node, reason="the machine was terminated by its owner for a reason " * 10)
        largest = max(largest, size_of(job))
        job.done(fx.Kill)
        largest = max(largest, size_of(job))
        for kind in (fx.Acquire, fx.Exclude, fx.RequestQuarantine, fx.Release, fx.Page):
            while job.pending(kind):
                job.done(kind)
    assert record.attempt == 161
    assert len(record.excluded) >= 150
    assert largest <= LIMIT


def training(start, **policy):
    """1,536 nodes with long names and long labels that train, and 64 spares."""
    leaf = "network.topology.nvidia.com/leaf"
    job = start(1536, spare_nodes=64, ranks_per_node=8, **policy)
    job.edited = True
    for index in range(1600):
        job.incarnations[name(index)] = "8c6f5a4e"
        job.join(name(index), labels={leaf: f"leaf-{index // 16}"})
    return job.done(fx.Acquire).launches()


def asked(record):
    return {i: (p.kind, p.data.get("node"), p.data.get("count")) for i, p in record.pending.items()}


def survives(job):
    """A successor has the same nodes lost, draining and to be released, under the same ids."""
    restored = Core.restore(job.core.policy, json.loads(json.dumps(job.core.snapshot()))).record
    record = job.record
    assert restored.lost.keys() == record.lost.keys()
    assert [loss.shared for loss in restored.lost.values()].count(True) == len(
        [loss for loss in record.lost.values() if loss.shared]
    )
    assert restored.draining.keys() == record.draining.keys()
    assert restored.assignment == record.assignment
    assert list(restored.pending) == list(record.pending)
    assert asked(restored) == asked(record)


def test_record_stays_small_while_1000_nodes_are_lost(start):
    job = training(start)
    reason = "its pod was evicted: The node was low on resource: memory. " * 10
    for index in range(1000):
        job.now += 0.001
        job.goes(name(index), reason=reason)
        if index % 50 == 0:
            assert size_of(job) <= LIMIT
    assert len(job.record.lost) == 1000
    assert size_of(job) <= LIMIT
    survives(job)
    job.done(fx.Kill)
    assert job.record.excluded == {}
    assert size_of(job) <= LIMIT


def test_record_stays_small_while_every_other_node_is_lost_and_the_kill_waits(start):
    job = training(start)
    for index in range(0, 1536, 2):
        job.goes(name(index))
    assert len(job.record.lost) == 768
    job.join(*(name(index) for index in range(0, 1536, 2)))
    job.tell(ev.Tick())
    assert size_of(job) <= LIMIT
    survives(job)


def test_record_stays_small_while_600_nodes_are_drained(start):
    job = training(start)
    text = "its node is cordoned for an upgrade by the administrator of the cluster " * 10
    for index in range(600):
        job.hardware(name(index), "drain", text=text)
        if index % 50 == 0:
            assert size_of(job) <= LIMIT
    assert len(job.record.draining) == 600
    assert len(job.pending(fx.SaveNow)) == 1
    assert size_of(job) <= LIMIT
    survives(job)
    job.exit(0, sig=9).done(fx.Kill)
    assert len(job.pending(fx.Release)) == 600
    assert size_of(job) <= LIMIT
    survives(job)


def test_both_at_once_and_a_reason_of_100_kb(start):
    job = training(start)
    for index in range(600):
        job.hardware(name(index), "drain", text="its node is cordoned")
    for index in range(536, 1536):
        job.goes(name(index), reason="its pod was evicted")
    job.tell(ev.ManualCommand("stop", "x" * 100_000, by="ada"))
    assert size_of(job) <= LIMIT
    survives(job)
    job.done(fx.Kill)
    assert job.record.finish_reason.startswith("xxx")
    assert size_of(job) <= LIMIT


@pytest.mark.parametrize("command", ["stop", "suspend", "save", "evict"])
def test_a_long_reason_is_cut_where_it_comes_in(running, command):
    job = running(2, spare_nodes=1)
    job.tell(ev.ManualCommand(command, "x" * 100_000, "n-1"))
    assert size_of(job) < 8192
    job.tell(ev.ManualCommand("stop", "y" * 100_000))
    job.tell(ev.NodeGone("n-2", None, "z" * 100_000))
    assert size_of(job) < 8192


@pytest.mark.parametrize("kind", [fx.Launch, fx.Acquire])
def test_a_long_reason_of_a_failure_is_cut(start, kind):
    job = start(1, acquire_tries=1)
    if kind is fx.Launch:
        job.join("n-0")
    job.fails(kind, "x" * 100_000)
    assert size_of(job) < 8192


def test_losses_that_share_no_cause_are_stored_with_their_reason(running):
    job = running(8, shared_cause_nodes=100).goes("n-1", reason="fire").goes("n-2", reason="water")
    restored = Core.restore(job.core.policy, job.core.snapshot()).record
    assert restored.lost == job.record.lost
    assert {name: loss.reason for name, loss in restored.lost.items()} == {
        "n-1": "n-1: fire",
        "n-2": "n-2: water",
    }


@pytest.mark.parametrize(
    "snapshot",
    [
        {"lostTogether": {"at": 1.0, "nodes": {"places": "7", "others": []}}},
        {"lostTogether": {"at": 1.0, "nodes": {"places": "a", "others": []}}},
        {"releases": {"ids": "1-3", "of": ["a"]}},
        {"drainingTogether": [1]},
    ],
)
def test_wrong_groups_are_refused(snapshot):
    with pytest.raises(ValueError, match=r"expected|invalid literal|zip"):
        Core.restore(Policy(), snapshot)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a"],
        [f"n-{i}" for i in range(500)],
        [name(i) for i in range(500)],
        ["with space"] * 100,
        [f"{i}" for i in range(10, 99)],
    ],
)
def test_names_come_back_equal(names):
    assert unpack(json.loads(json.dumps(pack(names)))) == names


def test_wrong_packing_is_refused():
    with pytest.raises(ValueError, match="list of names"):
        unpack({"prefix": "x"})
