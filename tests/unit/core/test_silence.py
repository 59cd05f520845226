"""Nodes that join, fall silent, go and come back: exact bounds, and what each does to the job."""

from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.state.record import JobState, NodeStatus

GLOO = "Connection closed by peer"


def silent(job, node, seconds):
    """Only this node sends no heartbeat for so long."""
    job.heartbeats()
    job.silent.add(node)
    began = job.now
    while job.now < began + seconds:
        job.now = min(job.now + 0.5, began + seconds)
        job.heartbeats()
        job.tell(ev.Tick())
    return job


def test_a_node_is_suspected_at_two_thirds_of_the_bound_and_lost_at_it(running):
    job = silent(running(2, silence_s=15.0, hang_margin_s=500.0), "n-1", 9.9)
    assert job.live_nodes["n-1"].status is NodeStatus.READY
    silent(job, "n-1", 0.1)
    assert job.live_nodes["n-1"].status is NodeStatus.SUSPECT
    (probe,) = job.heard(fx.Probe)
    assert (probe.node, probe.deadline_s) == ("n-1", 5.0)
    assert probe.reason == "n-1 sent no heartbeat for 10.0 s"
    silent(job, "n-1", 4.9)
    assert job.state is JobState.RUNNING
    silent(job, "n-1", 0.1)
    assert job.state is JobState.STOPPING
    incident = job.incident
    assert (incident.node, incident.reason) == ("n-1", "n-1 sent no heartbeat for 15.0 s")
    fault = incident.milestones["fault"]
    assert (fault.at, fault.source) == (job.now - 15.0, "estimated")
    assert not job.heard(fx.Probe)


def test_a_node_without_an_end_of_its_heartbeats_is_never_probed(running):
    job = running(2, silence_s=15.0).train(200)
    assert not job.heard(fx.Probe)


def test_a_failed_probe_loses_the_suspect_and_says_what_it_found(running):
    job = silent(running(2, silence_s=15.0), "n-1", 12.0)
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], "n-1", False, "no route to host"))
    assert job.incident.reason == "n-1 sent no heartbeat for 12.0 s and the probe failed: no route to host"
    fault = job.incident.milestones["fault"]
    assert (fault.at, fault.source) == (job.now - 12.0, "estimated")
    assert job.live_nodes["n-1"].status is NodeStatus.GONE


def test_a_failed_probe_of_a_draining_suspect_costs_nothing(running):
    job = running(2, silence_s=15.0).hardware("n-1", "drain")
    silent(job, "n-1", 12.0)
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], "n-1", False, "no route"))
    assert (job.incident.cause, job.record.restarts) == ("planned", {})


@pytest.mark.parametrize("node", ["n-0", "n-9"])
def test_a_probe_of_a_node_that_is_no_suspect_is_void(running, node):
    job = running(2)
    job.tell(ev.ProbeResult("e-99", node, False, "no route"))
    assert job.state is JobState.RUNNING


def test_a_failed_probe_in_shadow_mode_only_watches(running):
    job = silent(running(2, silence_s=15.0, shadow=("silence",)), "n-1", 12.0)
    job.tell(ev.ProbeResult(job.pending(fx.Probe)[-1], "n-1", False, "no route"))
    assert (job.state, job.record.shadowed) == (JobState.RUNNING, {"silence": 1})
    assert job.incident.decision == "shadow mode: would replace the node"


def test_a_silent_spare_is_lost_in_shadow_mode_too(running):
    job = silent(running(2, spare_nodes=1, silence_s=15.0, shadow=("silence",)), "n-2", 15.0)
    assert job.live_nodes["n-2"].status is NodeStatus.GONE
    assert job.record.shadowed == {}


def test_a_node_heard_again_may_be_what_the_job_waits_for(running):
    job = running(2, silence_s=30.0).exit(0, sig=9)
    job.live_nodes["n-1"].status = NodeStatus.SUSPECT
    job.done(fx.Kill)
    assert job.state is JobState.ASSEMBLING
    job.heartbeat("n-1")
    assert job.state is JobState.LAUNCHING


def test_a_lost_node_that_was_not_released_serves_as_a_spare_again(running):
    job = silent(running(2, spare_nodes=1, silence_s=15.0), "n-2", 15.0)
    assert job.live_nodes["n-2"].status is NodeStatus.GONE
    job.heartbeat("n-2")
    assert job.live_nodes["n-2"].status is NodeStatus.READY
    assert not job.heard(fx.Release)


def test_a_lost_node_that_the_fleet_took_back_does_not_serve_again(running):
    job = running(2, spare_nodes=1).goes("n-2")
    job.heartbeat("n-2")
    assert job.live_nodes["n-2"].status is NodeStatus.GONE


def test_a_lost_spare_that_is_to_drain_is_released_when_it_is_heard(running):
    job = silent(running(2, spare_nodes=1, silence_s=15.0), "n-2", 15.0)
    job.record.draining["n-2"] = "maintenance"
    job.heartbeat("n-2").heartbeat("n-2")
    assert [r.reason for r in job.heard(fx.Release)] == ["n-2 is not used by this job any more"]
    assert job.live_nodes["n-2"].status is NodeStatus.GONE


def test_most_nodes_silent_are_not_believed_before_the_patience_is_over(running):
    job = running(4, silence_s=15.0, spare_nodes=1)
    job.heartbeats()
    began = job.now
    job.silent = {"n-0", "n-1", "n-2"}
    for _ in range(30):
        job.now += 0.5
        job.heartbeats()
        job.tell(ev.Tick())
    (page,) = job.heard(fx.Page)
    assert page.reason == "most nodes fell silent at once: this driver may be cut off, it waits 60 s"
    assert job.core.live.cut_off_until == began + 75.0
    job.now = began + 74.9
    job.heartbeats().tell(ev.Tick())
    assert all(node.status is not NodeStatus.GONE for node in job.live_nodes.values())
    job.now = began + 75.0
    job.heartbeats().tell(ev.Tick())
    assert job.live_nodes["n-0"].status is NodeStatus.GONE


@pytest.mark.parametrize(("nodes", "gone", "paged"), [(2, 2, 0), (3, 3, 1), (6, 3, 0), (5, 3, 1)])
def test_three_and_more_than_half_are_most(running, nodes, gone, paged):
    job = running(nodes, silence_s=15.0, max_nodes_per_hour=9)
    job.heartbeats()
    job.silent = {f"n-{i}" for i in range(gone)}
    for _ in range(31):
        job.now += 0.5
        job.heartbeats()
        job.tell(ev.Tick())
    assert sum("cut off" in page.reason for page in job.heard(fx.Page)) == paged


def test_a_stall_of_which_nobody_reports_is_no_hang(running):
    job = running(2, silence_s=20.0, hang_margin_s=9.0).train(20).wait(12.5, beating=False)
    assert job.state is JobState.RUNNING
    assert job.record.deadlines["hang"] == pytest.approx(job.core.live.progress_at + 12.0 + 20.0)


def test_joining_keeps_what_the_agent_says(running):
    job = running(1)
    job.tell(ev.NodeJoined("n-1", "x/1", labels={"rack": "r-1"}))
    node = job.live_nodes["n-1"]
    assert (node.incarnation, node.status, node.heard_until) == ("x/1", NodeStatus.READY, job.now)
    assert node.labels == {"rack": "r-1"}


def test_an_excluded_node_that_joins_is_released_and_another_asked_for_after_a_pause(running):
    job = running(2, spare_nodes=1).command("evict", "n-2")
    job.heard(fx.Release)
    job.agent_restarts("n-2")
    (released,) = job.heard(fx.Release)
    assert (released.node, released.reason) == ("n-2", "n-2 evicted: because by ada")
    assert job.record.deadlines["acquireRetry"] == job.now + 5.0
    node = job.live_nodes["n-2"]
    assert (node.status, node.released, node.incarnation) == (NodeStatus.GONE, True, "n-2/2")


def test_a_node_excluded_long_ago_is_told_that_it_is_not_used(running):
    job = running(1, spare_nodes=18)
    for index in range(1, 19):
        job.command("evict", f"n-{index}")
    job.heard(fx.Release)
    job.agent_restarts("n-1")
    assert job.heard(fx.Release)[0].reason == "n-1 is not used by this job any more"


def test_a_reconnect_fulfils_no_promise(running):
    job = running(2, spare_nodes=2)
    job.goes("n-2").goes("n-3")
    assert job.record.outstanding == 2
    job.join("n-0", attempt=1)
    assert job.record.outstanding == 2
    job.agent_restarts("n-2")
    assert job.record.outstanding == 1


def test_an_agent_that_restarted_lost_the_ranks_of_its_node(running):
    job = running(2).agent_restarts("n-1")
    assert job.incident.reason == "the agent of n-1 restarted and its ranks are gone"
    assert (job.incident.cause, job.incident.node) == ("node_lost", "n-1")
    fault = job.incident.milestones["fault"]
    assert (fault.at, fault.source) == (job.now, "estimated")


def test_an_agent_that_joins_while_its_ranks_are_launched_lost_none(running):
    job = running(2).exit(0, sig=9).done(fx.Kill)
    job.join("n-1", attempt=1)
    assert job.state is JobState.LAUNCHING
    job.done(fx.Launch).join("n-1", attempt=2)
    assert job.state is JobState.LAUNCHING
    job.join("n-1", attempt=1)
    assert job.state is JobState.STOPPING


def test_a_node_that_is_gone_is_named_once_in_the_reason(running):
    job = running(3, spare_nodes=2).goes("n-1", reason="pod n-1 was deleted")
    assert job.incident.reason == "pod n-1 was deleted"
    assert job.live_nodes["n-1"].released
    job = running(3, spare_nodes=2).goes("n-1", reason="terminated")
    assert job.incident.reason == "n-1: terminated"


def test_the_source_of_a_loss_is_told(running):
    for injected, source in ((True, "injected"), (False, "observed")):
        job = running(2)
        job.tell(ev.NodeGone("n-1", "n-1/1", "gone", job.now - 3.0, injected=injected))
        fault = job.incident.milestones["fault"]
        assert (fault.at, fault.source) == (job.now - 3.0, source)


def test_a_node_that_is_gone_twice_is_lost_once(running):
    job = running(2, spare_nodes=1).goes("n-1").goes("n-1")
    assert job.record.next_incident == 2
    assert job.record.restarts == {"node_lost": 1}


def test_a_promised_node_that_dies_before_it_joins_is_asked_for_again(start):
    job = start(3)
    job.tell(ev.NodeGone("n-7", "", "image not found"))
    assert job.record.outstanding == 2
    assert job.record.deadlines["acquireRetry"] == job.now + 5.0
    running_job = start(1).join("n-0")
    running_job.tell(ev.NodeGone("n-7", "", "image not found"))
    assert running_job.record.outstanding == 0
    assert "acquireRetry" not in running_job.record.deadlines


def test_a_second_loss_is_evidence_of_the_first(running):
    job = running(3, spare_nodes=2).exit(0, sig=9)
    job.goes("n-1", reason="terminated")
    assert "then n-1: terminated" in job.incident.evidence
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-3", "n-2")
    assert set(job.record.excluded) == {"n-1"}


def test_the_loss_of_a_peer_explains_a_rank_that_lost_it(running):
    job = running(3, spare_nodes=2).exit(0, 1, error="RuntimeError", message=GLOO).done(fx.Kill)
    assert job.state is JobState.LAUNCHING
    job = running(3).exit(0, 1, error="RuntimeError", message=GLOO).goes("n-1", reason="terminated")
    assert (job.incident.cause, job.incident.node) == ("node_lost", "n-1")
    assert job.incident.id == "i-1"


def test_the_loss_of_a_spare_explains_nothing(running):
    job = running(2, spare_nodes=1).exit(0, 1, error="RuntimeError", message=GLOO).goes("n-2")
    assert job.incident.cause == "crash"
    assert job.incident.evidence == []


def test_nodes_lost_by_plan_share_no_cause_and_are_not_excluded(running):
    job = running(4, spare_nodes=4, shared_cause_nodes=2)
    for index in range(4):
        job.goes(f"n-{index}", planned=True)
    assert job.state is JobState.LAUNCHING
    assert (job.record.lost, job.record.excluded, job.record.shared) == ({}, {}, {})


def test_a_suspended_job_loses_nodes_without_blame(running):
    job = running(2).command("suspend").all_exit(76).done(fx.Kill).goes("n-1")
    assert (job.state, job.record.lost) == (JobState.SUSPENDED, {})
    assert not job.heard(fx.Acquire)[1:]


def test_losses_of_one_domain_within_the_time_share_a_cause(running):
    labels = {"labels": lambda i: {"rack": "r-0" if i < 3 else "r-1"}, "topology_keys": ("rack",)}
    job = running(6, shared_cause_nodes=3, correlate_s=60.0, **labels)
    job.goes("n-0")
    job.now += 30.0
    job.goes("n-1")
    job.now += 29.0
    job.goes("n-2")
    assert job.incident.node is None
    assert job.incident.reason == (
        "3 nodes of rack=r-0 were lost within 60 s: a cause they share, none of them is blamed"
    )
    job = running(6, shared_cause_nodes=3, correlate_s=60.0, **labels).goes("n-0")
    job.now += 60.0
    job.goes("n-1").goes("n-2")
    assert job.incident.node == "n-0"


def test_a_node_that_did_not_stop_is_blamed_by_what_was_heard_of_it(running):
    job = running(2, spare_nodes=1, kill_s=10.0).exit(0, sig=9)
    job.now = job.live_nodes["n-1"].heard_until + 5.0
    job.done(fx.Kill, unreaped=["n-1"])
    assert job.record.excluded["n-1"].reason == "n-1: ranks not reaped in 10 s, stuck in the kernel"
    job = running(2, spare_nodes=1, kill_s=10.0).exit(0, sig=9)
    heard = job.live_nodes["n-1"].heard_until
    job.now = heard + 5.1
    job.done(fx.Kill, unreaped=["n-1"])
    assert job.record.excluded["n-1"].reason == "n-1 sent no heartbeat for 5.1 s and did not stop its ranks"


def test_a_draining_node_that_did_not_stop_is_not_blamed(running):
    job = running(2).hardware("n-1", "drain").exit(0, sig=9)
    job.done(fx.Kill, unreaped=["n-1"])
    assert (job.record.excluded, job.record.lost, job.record.draining) == ({}, {}, {})
