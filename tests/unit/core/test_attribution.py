"""Which device event or log line explains a fault: how long before it, where, and which of several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megascale.core.contract.policy import Policy
from megascale.core.decide.attribution import explained, suspicious
from megascale.core.rules import RuleMatch
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import JobRecord, Live, Node, NodeStatus

NOW = 100_000.0


def context(*signals: RuleMatch, **policy) -> StepContext:
    nodes = {f"n-{i}": Node("x", NodeStatus.READY, NOW) for i in range(3)}
    live = Live(nodes=nodes, signals=list(signals))
    return StepContext(JobRecord(assignment=tuple(nodes)), live, Policy(**policy), NOW, NOW)


def device(node="n-1", ago_s=10.0, rule="xid-94", action="restart", line="Contained: SM"):
    return RuleMatch(NOW - ago_s, node, rule, "gpu", action, line=line)


def log(node="n-1", ago_s=10.0, rule="oom", action="fail_job", scope="cause", line="Out of memory"):
    return RuleMatch(NOW - ago_s, node, rule, "oom", action, scope, line)


def crash(**fields):
    return Fault(
        **{"cause": "crash", "reason": "rank 1 was killed", "node": "n-1", "rank": 1, "at": NOW, **fields}
    )


def test_a_device_event_explains_a_crash_of_its_node():
    fault = explained(context(device()), crash(evidence=("last words",), source="injected"))
    assert (fault.cause, fault.node, fault.rank, fault.at, fault.source) == (
        "hardware",
        "n-1",
        1,
        NOW,
        "injected",
    )
    assert fault.reason == "xid-94 on n-1; then rank 1 was killed"
    assert fault.evidence == ("Contained: SM", "last words")
    assert (fault.action, fault.rule, fault.category) == ("restart", "xid-94", "gpu")


@pytest.mark.parametrize(("ago_s", "cause"), [(600.0, "hardware"), (600.5, "crash")])
def test_a_device_event_explains_for_so_long(ago_s, cause):
    assert explained(context(device(ago_s=ago_s), attribution_before_s=600.0), crash()).cause == cause


def test_the_time_is_counted_from_the_fault_and_not_from_when_it_was_heard_of():
    ctx = context(device(ago_s=700.0), attribution_before_s=600.0)
    assert explained(ctx, crash(at=NOW - 150.0)).cause == "hardware"
    assert explained(ctx, crash(at=0.0)).cause == "crash"


@pytest.mark.parametrize(
    "cause", ["numerics", "straggler", "checkpoint_corrupt", "manual", "planned", "hardware"]
)
def test_some_causes_need_no_explanation(cause):
    assert explained(context(device()), crash(cause=cause)).cause == cause


@pytest.mark.parametrize("cause", ["crash", "user_code", "hang", "node_lost", "launch_failed"])
def test_others_may_have_a_device_behind_them(cause):
    assert explained(context(device()), crash(cause=cause)).cause == "hardware"


def test_a_fault_without_a_node_is_not_explained():
    assert explained(context(device()), crash(node=None)).cause == "crash"


def test_a_device_of_another_node_explains_only_a_lost_peer():
    ctx = context(device("n-2"))
    assert explained(ctx, crash()).cause == "crash"
    fault = explained(ctx, crash(consequence=True, node_gone=True))
    assert (fault.cause, fault.node, fault.rank, fault.node_gone) == ("hardware", "n-2", None, False)


def test_a_node_that_is_gone_stays_gone_whatever_explains_it():
    assert explained(context(device()), crash(node_gone=True)).node_gone


def test_an_alert_explains_nothing():
    assert explained(context(device(action="alert")), crash()).cause == "crash"


def test_the_strongest_event_counts_and_of_equals_the_latest():
    ctx = context(
        device("n-0", 500.0, "xid-79", "replace_node"),
        device("n-1", 300.0, "xid-94"),
        device("n-2", 100.0, "xid-95"),
    )
    found = suspicious(ctx, ["n-0", "n-1", "n-2"], 0.0)
    assert (found.nodes, found.action) == (("n-0",), "replace_node")
    found = suspicious(ctx, ["n-1", "n-2"], 0.0)
    assert found.nodes == ("n-2",)
    assert suspicious(ctx, ["n-1"], NOW - 200.0) is None


def test_of_the_events_of_one_fault_the_strongest_names_the_rule():
    signs = (
        device(ago_s=12.0, rule="xid-48", action="replace_node", line="DBE"),
        device(ago_s=10.0, line=""),
    )
    fault = explained(context(*signs), crash())
    assert (fault.rule, fault.action, fault.evidence) == ("xid-48", "replace_node", ("DBE",))


def test_a_log_line_says_what_the_crash_was():
    fault = explained(context(log()), crash(consequence=True))
    assert (fault.cause, fault.node, fault.rank, fault.consequence) == ("user_code", "n-1", 1, False)
    assert fault.reason == "Out of memory; then rank 1 was killed"
    assert (fault.action, fault.rule, fault.category) == ("fail_job", "oom", "oom")
    assert explained(context(log(line="")), crash()).reason == "oom; then rank 1 was killed"


@pytest.mark.parametrize(("ago_s", "cause"), [(60.0, "user_code"), (60.5, "crash")])
def test_a_log_line_explains_for_as_long_as_events_are_one(ago_s, cause):
    assert explained(context(log(ago_s=ago_s), correlate_s=60.0), crash()).cause == cause


@pytest.mark.parametrize(
    "line",
    [log("n-2"), log(action="alert"), log(scope="consequence"), device(action="alert")],
    ids=["another node", "only an alert", "a consequence", "a device"],
)
def test_other_lines_do_not_say_what_the_crash_was(line):
    assert explained(context(line), crash()).cause == "crash"


def test_a_log_line_explains_only_a_crash_on_a_node_that_is_there():
    assert explained(context(log()), crash(cause="hang")).cause == "hang"
    assert explained(context(log()), crash(node_gone=True)).cause == "crash"
    assert explained(context(log(ago_s=70.0)), crash(at=NOW - 20.0)).cause == "user_code"
    assert explained(context(log(ago_s=70.0)), crash(at=0.0)).cause == "crash"


def test_of_several_lines_the_strongest_counts_then_the_latest():
    lines = [
        replace(log(ago_s=ago_s, rule=rule, action=action), category="data")
        for ago_s, rule, action in ((30.0, "a", "restart"), (20.0, "b", "fail_job"), (10.0, "c", "restart"))
    ]
    assert explained(context(*lines), crash()).rule == "b"
    assert explained(context(lines[2], lines[0]), crash()).rule == "c"


def test_a_kill_for_want_of_host_memory_is_the_machines():
    fault = explained(context(log(rule="oom-killer", action="restart")), crash())
    assert (fault.cause, fault.category, fault.action) == ("hardware", "oom", "restart")
    assert explained(context(log(rule="cuda-oom", action="fail_job")), crash()).cause == "user_code"
