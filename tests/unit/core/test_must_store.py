"""The record is stored when it holds something new that a successor cannot learn again; beats are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.machine import Core, _decided
from megascale.core.state.record import COMMITS_KEPT, Blame


def told(job, event):
    """Tell an event that leads to no effect; whether the record has to be stored."""
    assert job.tell(event) == []
    return job.core.must_store


def test_a_release_by_hand_is_stored(running):
    job = running(2, spare_nodes=1).command("evict", "n-2")
    assert told(job, ev.ManualCommand("release", "mended", "n-2", "ada"))
    assert not told(job, ev.ManualCommand("release", "mended", "n-2", "ada"))


def test_a_change_of_plans_is_stored(running):
    job = running(2).exit(0, sig=9)
    assert told(job, ev.ManualCommand("stop", "enough"))
    successor = Core.restore(job.core.policy, job.core.snapshot())
    assert successor.record.plan.state == "stopped"


def test_every_commit_is_stored(running):
    job = running(2).train(COMMITS_KEPT + 5)
    for step in range(1, COMMITS_KEPT + 5):
        assert told(job, ev.CommitDone(step, 1, job.now)), step
    assert not told(job, ev.CommitDone(step, 1, job.now))


def test_a_spec_is_stored_whatever_it_changes(running):
    job = running(2)
    assert told(job, ev.SpecChanged(replace(job.core.policy, hang_steps=9.0), "r2", restart=False))


def test_the_end_of_an_incident_is_stored(running):
    job = running(2).exit(0, sig=9).recovers()
    stored = []
    for _ in range(3):
        job.now += 1.0
        for node in ("n-0", "n-1"):
            job.heartbeat(node, step=job.core.live.step + (node == "n-0"))
            stored.append(job.core.must_store)
    assert job.record.incident is None
    assert stored.count(True) == 1


@pytest.mark.parametrize("nodes", [1, 3])
def test_beats_and_steps_are_not_stored(running, nodes):
    job = running(nodes)
    for _ in range(20):
        job.now += 1.0
        for node in list(job.live_nodes):
            job.heartbeat(node, step=job.core.live.step + (node == "n-0"))
            assert not job.core.must_store
        assert not told(job, ev.Tick())
    assert not told(job, ev.SnapshotReady("n-0", 1, 5))
    assert not job.heard(fx.Probe)


CHANGES = {
    "evidence": lambda record: record.incident.add_evidence("a line"),
    "milestone": lambda record: record.incident.mark("stopped", 5.0),
    "decision": lambda record: setattr(record.incident, "decision", "another"),
    "history": lambda record: record.history["n-0"].append(5.0),
    "blame": lambda record: record.blame.update({"n-0": Blame(9.0, 5.0)}),
    "waiting revision": lambda record: setattr(record.spec, "waiting", "r9"),
    "distrusted": lambda record: record.distrusted.append(Commit(1, 1)),
    "draining": lambda record: record.draining.update({"n-1": "an upgrade"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_in_place_is_noticed(running, change):
    record = running(2).exit(0, sig=9).record
    before = _decided(record, ev.Tick())
    assert before == _decided(record, ev.Tick())
    change(record)
    assert before != _decided(record, ev.Tick())
