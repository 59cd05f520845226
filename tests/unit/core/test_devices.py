"""Hardware events and log lines: how each is read, and what it does in other states of the job."""

from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.events import HardwareEvent
from megascale.core.handlers.hardware_events import match_of
from megascale.core.rules import rule_set
from megascale.core.state.record import JobState

GLOO = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:41873"


def read(sign, code=None, text="", **more):
    match = match_of(HardwareEvent("n-1", sign, code, text, **more), 500.0, rule_set())
    return match.rule, match.category, match.action, match.line


@pytest.mark.parametrize(
    ("event", "match"),
    [
        (("xid", 79), ("xid-79", "gpu", "replace_node", "xid 79")),
        (("xid", 79, "off the bus"), ("xid-79", "gpu", "replace_node", "off the bus")),
        (("xid", 9999, "no such"), ("xid", "gpu", "alert", "no such")),
        (("ecc", None, "odd"), ("ecc", "gpu", "alert", "odd")),
        (("nvlink", None, "odd"), ("nvlink", "gpu", "alert", "odd")),
        (("pcie", None, "odd"), ("pcie", "gpu", "alert", "odd")),
        (("thermal", None, "odd"), ("thermal", "gpu", "alert", "odd")),
        (("nic", None, "odd"), ("nic", "network", "alert", "odd")),
        (("disk", None, "odd"), ("disk", "storage", "alert", "odd")),
        (("memory", None, "odd"), ("memory", "host", "alert", "odd")),
        (("fan", None, ""), ("fan", "host", "alert", "fan")),
    ],
)
def test_an_event_is_read_by_its_sign_and_code(event, match):
    assert read(*event) == match


def test_what_the_agent_says_of_an_event_counts_before_its_sign():
    assert read("xid", 79, "text", action="alert") == ("xid", "gpu", "alert", "text")
    told = {"action": "restart", "rule": "site-7", "category": "storage"}
    assert read("xid", 79, "text", **told) == ("site-7", "storage", "restart", "text")


def test_an_event_without_a_time_is_as_of_now():
    rules = rule_set()
    times = []
    for more in ({}, {"action": "alert"}):
        for event in (("xid", 79, ""), ("disk", None, "odd"), ("fan", None, "nvme0: I/O error, dev nvme0n1")):
            times.append(match_of(HardwareEvent("n-1", *event, **more), 500.0, rules).at)
            times.append(match_of(HardwareEvent("n-1", *event, at=7.0, **more), 500.0, rules).at)
    assert times == [500.0, 7.0] * 6
    assert match_of(HardwareEvent("n-1", "xid", 79), 500.0, rules).node == "n-1"


def test_lines_of_another_attempt_are_void_and_of_the_kernel_never_are(running):
    job = running(2).exit(0, sig=9).recovers()
    for attempt in (1, 3):
        job.tell(ev.LogMatch("n-1", "a", "gpu", "alert", "line", attempt=attempt, at=job.now))
    assert job.core.live.signals == []
    for attempt in (0, 2):
        job.tell(ev.LogMatch("n-1", "a", "gpu", "alert", "line", attempt=attempt))
    found = [(s.at, s.node, s.rule, s.category, s.action, s.line) for s in job.core.live.signals]
    assert found == [(job.now, "n-1", "a", "gpu", "alert", "line")] * 2


def test_signals_are_kept_while_they_may_explain_something(running):
    windows = {"attribution_before_s": 100.0, "alert_window_s": 50.0, "correlate_s": 60.0}
    job = running(2, **windows).log("n-1", "a", "gpu", "alert")
    job.now += 100.0
    job.log("n-1", "b", "gpu", "alert")
    assert [s.rule for s in job.core.live.signals] == ["a", "b"]
    job.now += 0.5
    job.log("n-1", "c", "gpu", "alert")
    assert [s.rule for s in job.core.live.signals] == ["b", "c"]


def test_signals_of_nodes_that_the_job_does_not_have_are_left_out(running):
    job = running(2).log("n-9", "a", "gpu", "alert")
    assert job.core.live.signals == []


def test_the_newest_signals_are_kept(running):
    job = running(1)
    for index in range(300):
        job.log("n-0", f"r-{index}", "framework", "alert")
    assert [s.rule for s in job.core.live.signals] == [f"r-{index}" for index in range(44, 300)]


def test_what_an_excluded_node_still_reports_is_evidence_of_its_incident(running):
    job = running(2, spare_nodes=2).train(3).hardware("n-1", "xid", 79, "off the bus")
    job.hardware("n-1", "xid", 48, "double bit error")
    assert "double bit error" in job.incident.evidence
    job.recovers().train(20)
    assert job.record.incident is None
    job.hardware("n-1", "xid", 48, "another")
    job.exit(0, sig=9)
    job.hardware("n-1", "xid", 48, "yet another")
    assert job.incident.evidence == []


def test_alerts_of_a_whole_switch_are_evidence_of_what_is_open(running):
    job = running(8, topology_keys=("switch",), labels=lambda _: {"switch": "s-0"})
    job.exit(0, sig=9)
    for index in range(6):
        job.hardware(f"n-{index}", "nic", text="port flapped")
    assert job.incident.cause == "crash"
    assert any("nodes" in line for line in job.incident.evidence)
    assert not job.record.excluded


def test_network_alerts_are_counted_by_node_and_window(running):
    job = running(3, spare_nodes=1, tolerated_alerts=3, alert_window_s=300.0)
    job.hardware("n-1", "nic", text="a").hardware("n-2", "nic", text="b").train(100)
    job.hardware("n-1", "nic", text="c").train(200)
    assert job.state is JobState.RUNNING
    job.hardware("n-1", "nic", text="d")
    assert job.incident.reason.startswith("3 network alerts on n-1 within 5 min")
    assert job.incident.evidence[:3] == ["a", "c", "d"]


def test_alerts_of_other_kinds_do_not_recur_as_network_alerts(running):
    job = running(2, spare_nodes=1)
    for _ in range(4):
        job.hardware("n-1", "thermal", text="hot").hardware("n-1", "disk", text="odd")
    assert job.state is JobState.RUNNING


@pytest.mark.parametrize(("after_s", "cause"), [(300.0, "hardware"), (300.5, "crash")])
def test_a_device_explains_for_so_long_after_the_fault(running, after_s, cause):
    job = running(2, kill_s=1000.0, silence_s=5000.0).exit(1, sig=6)
    job.now += after_s
    job.hardware("n-1", "xid", 94)
    assert job.incident.cause == cause


def test_a_device_of_a_peer_explains_only_a_rank_that_lost_its_peers(running):
    job = running(2).exit(0, sig=6).hardware("n-1", "xid", 94)
    assert job.incident.cause == "crash"
    job = running(2).exit(0, 1, error="RuntimeError", message=GLOO).hardware("n-1", "xid", 94)
    assert (job.incident.cause, job.incident.node) == ("hardware", "n-1")


def test_a_device_of_a_spare_explains_nothing(running):
    job = running(2, spare_nodes=1).exit(0, 1, error="RuntimeError", message=GLOO)
    job.hardware("n-2", "xid", 94)
    assert job.incident.cause == "crash"


def test_wrong_numbers_are_not_explained_by_a_device_found_later(running):
    job = running(2, spare_nodes=1).command("evict", "n-1").all_exit(76)
    job.hardware("n-0", "xid", 94)
    assert job.incident.cause == "manual"


def test_a_device_that_calls_for_a_restart_acts_only_on_a_stall(running):
    job = running(2).train(3).hardware("n-1", "xid", 94)
    assert job.state is JobState.RUNNING
    job = running(2, spare_nodes=1).train(20).wait(13.5).hardware("n-2", "xid", 94)
    assert job.state is JobState.DIAGNOSING
    job.hardware("n-1", "xid", 94)
    assert (job.state, job.incident.cause) == (JobState.STOPPING, "hardware")


def test_a_sure_device_of_a_node_found_broken_before_is_not_decided_twice(running):
    job = running(3, spare_nodes=2).exit(1, 1, error="RuntimeError", message="CUDA error: unknown error")
    job.hardware("n-1", "xid", 79).hardware("n-1", "xid", 79)
    assert (job.incident.id, job.record.next_incident) == ("i-1", 2)
    job.hardware("n-2", "xid", 79)
    assert job.record.next_incident == 3


@pytest.mark.parametrize(("after_s", "number"), [(300.0, 2), (300.5, 3)])
def test_a_device_sharpens_a_recovery_for_so_long(running, after_s, number):
    job = running(2, spare_nodes=1, startup_s=5000.0, silence_s=5000.0)
    job.exit(1, code=1, error="RuntimeError", message="CUDA error: unknown error").done(fx.Kill)
    job.now += after_s
    job.hardware("n-1", "xid", 79)
    assert job.record.next_incident == number


def test_a_drain_notice_gives_the_reason_of_its_owner(running):
    job = running(2, spare_nodes=2).hardware("n-2", "drain")
    assert job.heard(fx.Release)[0].reason == "its owner announced it"
    job.hardware("n-1", "drain", text="maintenance at noon")
    assert job.incident.reason == "n-1 will go away: maintenance at noon"
    assert job.incident.decision == "a spare takes over after a save; no budget charged, no blame"
    assert job.incident.milestones["fault"].at == job.now


def test_a_drain_notice_without_a_spare_saves_and_says_why(running):
    job = running(2).hardware("n-1", "drain", text="maintenance")
    (save,) = job.heard(fx.SaveNow)
    assert save.reason == "n-1 will go away and no spare is there yet: maintenance"
    job.hardware("n-1", "drain", text="again").hardware("n-9", "drain")
    assert job.record.draining == {"n-1": "maintenance"}
    assert not job.heard(fx.SaveNow)


def test_nodes_that_drain_together_are_swapped_together(running):
    job = running(3, spare_nodes=1).exit(0, sig=9).done(fx.Kill)
    job.hardware("n-0", "drain", text="rack work").hardware("n-2", "drain", text="other").done(fx.Launch)
    job.train(1)
    assert job.state is JobState.RUNNING
    job.join("n-4")
    assert job.state is JobState.SAVING
    assert job.incident.reason == "n-0, n-2 will go away: rack work"


def test_shadow_mode_leaves_even_a_broken_spare(running):
    job = running(2, spare_nodes=1, shadow=("hardware",)).hardware("n-2", "xid", 79)
    assert job.record.excluded == {}
    assert job.incident.decision == "shadow mode: would replace the node"
