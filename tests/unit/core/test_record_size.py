"""The job record stays within 64 KiB at 1,536 nodes with long names, whatever happened."""

from __future__ import annotations

import json

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract.names import pack, unpack
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
