from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.state.record import JobState


def racks(size):
    return lambda index: {"switch": f"s-{index // size}"}


def cluster(running, nodes=12, **policy):
    return running(nodes, spare_nodes=4, topology_keys=("switch",), labels=racks(4), **policy)


def test_switch_that_takes_its_nodes_is_one_incident_and_blames_none(running):
    job = cluster(running)
    for node in ("n-4", "n-5", "n-6", "n-7"):
        job.goes(node)
        job.now += 2.0
    assert job.record.next_incident == 2
    assert "4 nodes of switch=s-1" in job.incident.reason
    assert job.incident.node is None
    job.done(fx.Kill)
    assert job.state is JobState.LAUNCHING
    assert not job.record.excluded
    assert not job.record.blame
    assert sum(job.record.restarts.values()) == 1


def test_nodes_behind_the_switch_may_come_back(running):
    job = running(8, topology_keys=("switch",), labels=racks(4))
    for node in ("n-4", "n-5", "n-6", "n-7"):
        job.goes(node)
    job.done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    for node in ("n-4", "n-5", "n-6", "n-7"):
        job.agent_restarts(node)
    assert job.state is JobState.LAUNCHING
    assert job.record.assignment == tuple(f"n-{i}" for i in range(8))


def test_losses_in_different_racks_are_losses_of_their_own(running):
    job = cluster(running)
    job.goes("n-0").goes("n-4").done(fx.Kill)
    assert set(job.record.excluded) == {"n-0", "n-4"}


def test_losses_in_one_rack_far_apart_are_losses_of_their_own(running):
    job = cluster(running, correlate_s=60.0, hang_margin_s=1000.0)
    for node in ("n-4", "n-5", "n-6"):
        job.goes(node).recovers().train(100)
    assert set(job.record.excluded) == {"n-4", "n-5", "n-6"}


def test_many_losses_without_labels_share_a_cause_too(running):
    job = running(12, spare_nodes=8)
    for index in range(7):
        job.goes(f"n-{index}")
    job.done(fx.Kill)
    assert not job.record.excluded
    assert "7 nodes of the cluster" in job.incident.reason


def test_old_common_cause_excuses_nobody_later(running):
    job = cluster(running, hang_margin_s=1000.0)
    for node in ("n-4", "n-5", "n-6"):
        job.goes(node)
    job.recovers().train(100)
    job.goes("n-7").done(fx.Kill)
    assert set(job.record.excluded) == {"n-7"}
