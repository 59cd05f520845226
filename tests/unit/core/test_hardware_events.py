from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract.policy import LogRuleSpec, RecoveryOverride
from megascale.core.state.record import JobState


def test_sure_event_replaces_the_node_at_once(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    assert job.state is JobState.STOPPING
    assert (job.incident.cause, job.incident.action) == ("hardware", "replace_node")
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    assert "n-1" in job.record.excluded


def test_many_signs_of_one_fault_are_one_incident(running):
    job = running(2, spare_nodes=1)
    job.log("n-1", "pcie-aer", "gpu", "alert").hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    job.hardware("n-1", "nic", text="mlx5_0: Link down").hardware(
        "n-1", "xid", 79, "GPU has fallen off the bus."
    )
    job.exit(1, sig=9)
    assert job.record.next_incident == 2
    job.recovers()
    job.hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    assert job.record.next_incident == 2


def _dies_of_the_device(running):
    job = running(2, spare_nodes=1)
    job.exit(1, code=1, error="RuntimeError", message="CUDA error: unknown error")
    assert (job.incident.cause, job.incident.action) == ("hardware", "restart_in_place")
    return job


def test_device_found_while_its_crash_is_recovered_from_is_the_same_incident(running):
    job = _dies_of_the_device(running)
    job.done(fx.Kill)
    assert job.state is JobState.LAUNCHING
    job.hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    assert (job.incident.id, job.incident.action, job.state) == ("i-1", "replace_node", JobState.STOPPING)
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    assert job.record.restarts == {"hardware": 1}


def test_what_is_explained_later_is_blamed_once(running):
    job = running(2)
    job.exit(1, sig=9)
    assert (job.incident.cause, job.record.blame["n-1"].score) == ("crash", 1.0)
    job.hardware("n-1", "xid", 46, "GPU stopped processing")
    assert (job.incident.id, job.incident.cause, job.incident.action) == (
        "i-1",
        "hardware",
        "restart_in_place",
    )
    assert job.record.blame["n-1"].score == pytest.approx(1.0)
    assert job.record.history["n-1"] == [job.now]
    assert job.record.restarts == {"crash": 0, "hardware": 1}


def test_device_of_another_node_found_meanwhile_is_another_incident(running):
    job = _dies_of_the_device(running)
    job.done(fx.Kill)
    job.hardware("n-0", "xid", 79, "GPU has fallen off the bus.")
    assert (job.incident.id, job.incident.node) == ("i-2", "n-0")


def test_device_found_at_the_bound_of_exclusions_does_not_stop_the_launch(running):
    job = running(2, spare_nodes=1, max_nodes_per_hour=0)
    job.exit(1, code=1, error="RuntimeError", message="CUDA error: unknown error")
    job.done(fx.Kill)
    job.hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    assert job.state is JobState.LAUNCHING


@pytest.mark.parametrize("code", [43, 45, 63, 92])
def test_harmless_xids_change_nothing(running, code):
    job = running(2)
    job.hardware("n-1", "xid", code)
    assert job.state is JobState.RUNNING
    assert not job.record.incidents


def test_remap_beside_a_double_bit_error_convicts(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "xid", 63)
    job.hardware("n-1", "xid", 48)
    assert job.incident.action == "replace_node"


def test_event_shortly_before_an_exit_explains_it(running):
    job = running(2)
    job.hardware("n-1", "xid", 94, "Contained: SM (0x1)").train(30).exit(1, sig=6)
    assert job.incident.cause == "hardware"
    assert "xid-94" in job.incident.reason
    assert "SIGABRT" in job.incident.reason
    assert job.incident.action == "restart_in_place"


def test_event_long_before_an_exit_does_not(running):
    job = running(2, attribution_before_s=600.0)
    job.hardware("n-1", "xid", 94).train(700).exit(1, sig=6)
    assert job.incident.cause == "crash"


def test_event_on_another_node_explains_only_an_echo(running):
    job = running(2)
    job.hardware("n-1", "xid", 74).train(3).exit(0, sig=11)
    assert job.incident.cause == "crash"
    job.recovers().train(3)
    job.hardware("n-1", "xid", 94).train(2).exit(
        0, 1, error="RuntimeError", message="Connection reset by peer"
    )
    assert (job.incident.cause, job.incident.node) == ("hardware", "n-1")


def test_event_shortly_after_an_exit_explains_it_too(running):
    job = running(2, spare_nodes=1)
    job.exit(1, sig=6)
    assert job.incident.action == "restart_in_place"
    job.hardware("n-1", "xid", 79, "GPU has fallen off the bus.")
    assert (job.incident.cause, job.incident.action) == ("hardware", "replace_node")
    assert job.record.restarts == {"crash": 0, "hardware": 1}
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")


def test_recurring_xid_convicts(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "xid", 119)
    assert job.state is JobState.RUNNING
    job.train(5).hardware("n-1", "xid", 119)
    assert job.incident.action == "replace_node"


def test_two_network_alerts_in_five_minutes_evict_but_one_is_tolerated(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "nic", text="port flapped")
    assert job.state is JobState.RUNNING
    job.train(290).hardware("n-1", "nic", text="port flapped")
    assert job.incident.action == "replace_node"
    assert "2 network alerts" in job.incident.reason


def test_alerts_are_kept_for_as_long_as_they_are_counted(running):
    job = running(2, spare_nodes=1, alert_window_s=3600.0, attribution_before_s=60.0)
    job.hardware("n-1", "nic", text="port flapped").train(310)
    job.hardware("n-1", "nic", text="port flapped")
    assert job.state is JobState.STOPPING
    assert "2 network alerts on n-1 within 60 min" in job.incident.reason


def test_two_network_alerts_far_apart_are_tolerated(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "nic", text="port flapped").train(310).hardware("n-1", "nic", text="port flapped")
    assert job.state is JobState.RUNNING


def test_switch_that_alerts_on_many_nodes_costs_none_of_them(running):
    keys = ("switch",)
    job = running(8, spare_nodes=2, topology_keys=keys, labels=lambda i: {"switch": f"s-{i // 8}"})
    for index in range(6):
        job.hardware(f"n-{index}", "nic", text="port flapped")
        job.now += 1.0
    for index in range(6):
        job.hardware(f"n-{index}", "nic", text="port flapped")
    assert job.state is JobState.RUNNING
    assert not job.record.excluded


def test_past_the_bound_a_sure_sign_pages_and_disturbs_nothing(running):
    job = running(2, spare_nodes=1, max_nodes_per_hour=0)
    job.hardware("n-1", "xid", 79)
    assert job.state is JobState.RUNNING
    assert any("maxNodesPerHour" in page.reason for page in job.heard(fx.Page))


BAD_DISK = "[Errno 5] Input/output error"


def test_storage_trouble_that_wanders_speaks_against_no_node(running):
    job = running(4, spare_nodes=1, no_progress_limit=99)
    for rank in (1, 3, 0, 2):
        job.exit(rank, 1, error="OSError", message=BAD_DISK).recovers()
    assert not job.record.excluded


def test_storage_trouble_that_comes_back_on_one_node_climbs_the_ladder(running):
    job = running(4, spare_nodes=1, no_progress_limit=99)
    job.exit(1, 1, error="OSError", message=BAD_DISK)
    assert job.incident.action == "restart_in_place"
    job.recovers().exit(1, 1, error="OSError", message=BAD_DISK)
    assert job.incident.action == "restart_container"


def test_bad_spare_is_let_go_without_disturbing_training(running):
    job = running(2, spare_nodes=1)
    job.heard(fx.Acquire)
    job.hardware("n-2", "xid", 79)
    assert job.state is JobState.RUNNING
    assert [r.node for r in job.heard(fx.Release)] == ["n-2"]
    assert [a.count for a in job.heard(fx.Acquire)] == [1]


def test_log_line_names_the_cause_of_a_crash(running):
    job = running(2)
    job.log("n-1", "oom-killer", "oom", "fail_job", "Out of memory: Killed process 4711 (python)").exit(
        1, sig=9
    )
    assert job.incident.cause == "user_code"
    assert "Out of memory" in job.incident.reason


def test_benign_lines_explain_nothing(running):
    job = running(2)
    job.log("n-1", "nccl-info", "benign", "none").exit(1, sig=9)
    assert job.incident.cause == "crash"


def test_override_of_the_manifest_on_an_xid(running):
    job = running(2, overrides=(RecoveryOverride("fail_job", xid=94),))
    job.hardware("n-1", "xid", 94).exit(1, sig=6)
    assert job.incident.action == "fail_job"


def test_log_rules_of_the_manifest_change_what_a_device_event_calls_for(running):
    milder = LogRuleSpec("logRules[0]", rule="xid-79", action="alert")
    job = running(2, spare_nodes=1, log_rules=(milder,))
    job.hardware("n-1", "xid", 79)
    assert job.state is JobState.RUNNING


def test_log_rules_of_the_manifest_classify_texts_of_device_events(running):
    pump = LogRuleSpec("pump", pattern="pump .* failed", category="host", action="replace_node")
    job = running(2, spare_nodes=1, log_rules=(pump,))
    job.hardware("n-1", "memory", text="coolant pump 4 failed")
    assert (job.incident.action, job.incident.reason) == ("replace_node", "pump on n-1")


def test_hardware_in_shadow_mode_is_counted_and_left_alone(running):
    job = running(2, spare_nodes=1, shadow=("hardware",))
    job.hardware("n-1", "xid", 79)
    assert job.state is JobState.RUNNING
    assert job.record.shadowed == {"hardware": 1}
    assert "would replace the node" in job.incident.decision


def test_agents_verdict_on_an_event_counts(running):
    job = running(2, spare_nodes=1)
    job.hardware("n-1", "disk", text="nvme0: dead", rule="site-7", category="storage", action="replace_node")
    assert job.incident.action == "replace_node"


def test_signals_are_bounded(running):
    job = running(1)
    for _ in range(600):
        job.log("n-0", "x", "framework", "alert")
    assert len(job.core.live.signals) <= 256
