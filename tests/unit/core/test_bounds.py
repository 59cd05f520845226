"""Budgets, blame, lemons and bounds of exclusions: what is counted, and where each bound lies."""

from __future__ import annotations

import pytest

from megascale.core.act.budgets import note_failure, take_back_failure
from megascale.core.act.exclusion import add_blame, take_back_blame
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.decide.backoff import backoff_s
from megascale.core.decide.blame import blame_of, lemon_reason
from megascale.core.decide.breakers import exclusion_bound, no_progress, spent_budget, spent_cause_budget
from megascale.core.decide.ladder import decide
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import Blame, Incident, JobRecord, Live

NOW = 1e9
HOUR_S = 3600.0
DAY_S = 86400.0


def incident(**blamed):
    return Incident("i-1", "crash", "why", blamed=blamed)


def context(**policy) -> StepContext:
    return StepContext(JobRecord(), Live(), Policy(**policy), NOW, NOW)


def test_restarts_of_all_causes_use_up_the_budget():
    ctx = context(max_restarts=4)
    ctx.record.restarts = {"crash": 2, "hang": 1}
    assert spent_budget(ctx) is None
    ctx.record.restarts["hang"] = 2
    assert spent_budget(ctx) == "all 4 restarts of recovery.maxRestarts are used"


def test_budget_of_a_cause_counts_only_its_restarts():
    ctx = context(budgets={"crash": 2, "hang": 0})
    ctx.record.restarts = {"crash": 1, "node_lost": 50}
    assert spent_cause_budget(ctx, "crash") is None
    assert spent_cause_budget(ctx, "node_lost") is None
    assert spent_cause_budget(ctx, "hang") == "all 0 restarts of recovery.budgets.hang are used"
    ctx.record.restarts["crash"] = 2
    assert spent_cause_budget(ctx, "crash") == "all 2 restarts of recovery.budgets.crash are used"


def test_failures_at_one_step_and_at_various_steps_have_bounds_of_their_own():
    ctx = context(no_progress_limit=3)
    ctx.record.best_step = 7
    ctx.record.failures_at_step, ctx.record.failures_in_row = 2, 8
    assert no_progress(ctx) is None
    ctx.record.failures_in_row = 9
    assert no_progress(ctx) == "9 failures in a row, at various steps, before step 8 was completed"
    ctx.record.failures_at_step = 3
    assert no_progress(ctx) == "3 restarts in a row failed before step 8 was completed"


def test_a_failure_is_at_the_same_step_when_it_is_at_most_one_apart():
    ctx = context()
    counts = []
    for step in (5, 6, 6, 8, 7, 5):
        ctx.live.step = step
        note_failure(ctx, Fault("crash", "why"))
        counts.append(ctx.record.failures_at_step)
    assert counts == [1, 2, 3, 1, 2, 1]
    assert (ctx.record.failures, ctx.record.failures_in_row, ctx.record.restarts) == (6, 6, {"crash": 6})


def test_a_lost_node_counts_as_a_failure_but_not_as_one_at_its_step():
    ctx = context()
    note_failure(ctx, Fault("crash", "why"))
    note_failure(ctx, Fault("node_lost", "why"))
    assert (ctx.record.failures_in_row, ctx.record.failures_at_step) == (2, 1)
    take_back_failure(ctx, "node_lost")
    assert (ctx.record.failures_in_row, ctx.record.failures_at_step) == (1, 1)
    assert ctx.record.restarts == {"crash": 1, "node_lost": 0}


def test_taking_back_a_failure_undoes_it_and_never_counts_below_none():
    ctx = context()
    for _ in range(2):
        note_failure(ctx, Fault("hang", "why"))
    take_back_failure(ctx, "hang")
    record = ctx.record
    assert (record.failures, record.failures_in_row, record.failures_at_step) == (1, 1, 1)
    assert record.restarts == {"hang": 1}
    for _ in range(3):
        take_back_failure(ctx, "hang")
    take_back_failure(ctx, "crash")
    assert (record.failures, record.failures_in_row, record.failures_at_step) == (0, 0, 0)
    assert record.restarts == {"hang": 0, "crash": 0}


@pytest.mark.parametrize(("ran_s", "in_row"), [(99.5, 3), (100.0, 0)])
def test_a_script_without_steps_made_progress_if_it_got_past_its_start(ran_s, in_row):
    ctx = context(reports_steps=False, minimum_run_s=100.0)
    ctx.record.failures_in_row = ctx.record.failures_at_step = 2
    ctx.record.launched_at = NOW - ran_s
    note_failure(ctx, Fault("crash", "why"))
    assert ctx.record.failures_in_row == in_row


@pytest.mark.parametrize(("ran_s", "in_row"), [(599.0, 3), (600.0, 1)])
def test_ten_minutes_without_a_failure_end_the_backoff_of_a_script_without_steps(ran_s, in_row):
    ctx = context(reports_steps=False)
    ctx.record.restarts_in_row = 2
    ctx.record.launched_at = NOW - ran_s
    note_failure(ctx, Fault("crash", "why"))
    assert ctx.record.restarts_in_row == in_row


def test_the_first_restart_follows_at_once_and_later_ones_wait_a_bounded_random_time():
    ctx = context(backoff_limit_s=30.0)
    waits = {}
    for in_row in range(1, 40):
        ctx.record.restarts_in_row = in_row
        waits[in_row] = []
        for ctx.record.attempt in range(200):
            waits[in_row].append(backoff_s(ctx, Cause.CRASH, Action.RESTART_IN_PLACE))
    assert set(waits[1]) == {0.0}
    for in_row, bound in ((2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (39, 30.0)):
        assert 0.0 <= min(waits[in_row]) < 0.2 * bound
        assert 0.8 * bound < max(waits[in_row]) <= bound
        assert sum(waits[in_row]) / 200 == pytest.approx(bound / 2, rel=0.2)


def test_only_restarts_on_the_same_nodes_wait():
    ctx = context(backoff_limit_s=30.0)
    ctx.record.restarts_in_row, ctx.record.attempt = 9, 1
    assert backoff_s(ctx, Cause.LAUNCH_FAILED, Action.RESTART_CONTAINER) > 0.0
    assert backoff_s(ctx, Cause.CRASH, Action.REPLACE_NODE) == 0.0
    assert backoff_s(ctx, Cause.NODE_LOST, Action.RESTART_IN_PLACE) == 0.0
    assert backoff_s(context(backoff_limit_s=0.0), Cause.CRASH, Action.RESTART_IN_PLACE) == 0.0


def test_ranks_that_report_steps_make_progress_only_by_steps():
    ctx = context(startup_s=100.0)
    ctx.record.failures_in_row = 2
    ctx.live.progress_at = NOW - 1000.0
    note_failure(ctx, Fault("crash", "why"))
    assert ctx.record.failures_in_row == 3


def test_blame_halves_in_its_half_life():
    ctx = context(blame_half_life_s=HOUR_S)
    ctx.record.blame = {
        "a": Blame(2.0, NOW),
        "b": Blame(2.0, NOW - HOUR_S),
        "c": Blame(2.0, NOW - 3 * HOUR_S),
    }
    assert [blame_of(ctx, node) for node in "abcd"] == [2.0, 1.0, 0.25, 0.0]


def test_blame_adds_up_and_what_has_decayed_is_forgotten():
    ctx = context(blame_half_life_s=HOUR_S)
    ctx.record.blame = {
        "a": Blame(1.0, NOW - HOUR_S),
        "old": Blame(0.04, NOW - HOUR_S),
        "kept": Blame(0.05, NOW - HOUR_S),
    }
    add_blame(ctx, "a", "straggler", incident())
    assert ctx.record.blame == {"a": Blame(3.5, NOW), "kept": Blame(0.05, NOW - HOUR_S)}
    assert ctx.record.history == {"a": [NOW]}


@pytest.mark.parametrize("cause", ["manual", "planned", "numerics", "checkpoint_corrupt"])
def test_what_is_no_nodes_fault_blames_none(cause):
    ctx = context()
    add_blame(ctx, "a", cause, incident())
    assert (ctx.record.blame, ctx.record.history) == ({}, {})
    ctx.record.blame = {"a": Blame(1.0, NOW)}
    take_back_blame(ctx, incident(a=Blame(0.0, NOW)))
    assert ctx.record.blame == {"a": Blame(1.0, NOW)}


def test_history_of_a_node_is_kept_for_the_window_of_lemons():
    ctx = context(lemon_window_s=DAY_S)
    ctx.record.history = {"a": [NOW - DAY_S - 1.0, NOW - DAY_S, NOW - DAY_S + 1.0, NOW - HOUR_S]}
    add_blame(ctx, "a", "crash", incident())
    assert ctx.record.history == {"a": [NOW - DAY_S + 1.0, NOW - HOUR_S, NOW]}
    add_blame(ctx, "a", "crash", incident())
    assert ctx.record.history["a"][-2:] == [NOW - HOUR_S, NOW]


def test_histories_of_the_nodes_that_failed_last_are_kept():
    ctx = context()
    ctx.record.history = {f"n-{i}": [NOW - 9 * DAY_S, NOW - i * HOUR_S] for i in range(2, 66)}
    add_blame(ctx, "new", "crash", incident())
    assert len(ctx.record.history) == 64
    assert "n-65" not in ctx.record.history
    assert "n-64" in ctx.record.history


def test_taking_back_blame_undoes_what_that_incident_added():
    ctx = context(blame_half_life_s=HOUR_S)
    ctx.record.blame = {"a": Blame(4.0, NOW - HOUR_S), "b": Blame(0.5, NOW)}
    ctx.record.history = {"a": [NOW - DAY_S, NOW - HOUR_S], "b": [NOW - 60.0]}
    given = incident(a=Blame(1.5, NOW - HOUR_S), b=Blame(1.0, NOW - 60.0), unknown=Blame(1.0, NOW))
    take_back_blame(ctx, given)
    assert ctx.record.blame == {"a": Blame(2.0 - 0.75, NOW), "b": Blame(0.0, NOW)}
    assert ctx.record.history == {"a": [NOW - DAY_S]}
    take_back_blame(ctx, given)
    assert ctx.record.blame["a"] == Blame(1.25, NOW)


def test_an_incident_remembers_whom_it_gave_blame_of_the_newest():
    ctx, given = context(blame_half_life_s=HOUR_S), incident()
    add_blame(ctx, "a", "crash", given)
    assert given.blamed == {"a": Blame(1.0, NOW)}
    for number in range(8):
        add_blame(ctx, f"n-{number}", "node_lost", given)
    assert list(given.blamed) == [f"n-{number}" for number in range(8)]


def test_a_lemon_had_enough_incidents_in_the_window_each_at_least_an_hour_ago():
    ctx = context(lemon_incidents=3, lemon_window_s=2 * DAY_S)
    enough = [NOW - 2 * DAY_S + 1.0, NOW - HOUR_S]
    ctx.record.history = {
        "a": enough,
        "b": [NOW - 2 * DAY_S, NOW - HOUR_S],
        "c": [NOW - DAY_S, NOW - HOUR_S + 1.0],
    }
    assert lemon_reason(ctx, "a") == "a is a lemon: 3 incidents in 2 days, each time back after a restart"
    assert [lemon_reason(ctx, node) for node in ("b", "c", "d")] == [None, None, None]


def test_exclusions_of_an_hour_and_of_a_week_are_bounded():
    ctx = context(nodes=41, max_nodes_per_hour=3, max_excluded_share=0.1)
    ctx.record.exclusion_times = [NOW - HOUR_S, NOW - 1.0, NOW]
    assert exclusion_bound(ctx) is None
    ctx.record.exclusion_times = [NOW - HOUR_S + 1.0, NOW - 1.0, NOW]
    assert exclusion_bound(ctx) == "remediation.maxNodesPerHour = 3 is reached"
    ctx.record.exclusion_times = [NOW - 7 * DAY_S, *(NOW - i * DAY_S for i in range(1, 5))]
    assert exclusion_bound(ctx) is None
    ctx.record.exclusion_times[0] += 1.0
    bound = "5 nodes were excluded within a week, more than a job of this size should need"
    assert exclusion_bound(ctx) == bound


def test_a_small_job_may_exclude_in_a_week_what_it_may_in_an_hour():
    ctx = context(nodes=2, max_nodes_per_hour=3, max_excluded_share=0.1)
    ctx.record.exclusion_times = [NOW - DAY_S, NOW - 2 * DAY_S]
    assert exclusion_bound(ctx) is None
    ctx.record.exclusion_times.append(NOW - 3 * DAY_S)
    assert exclusion_bound(ctx).startswith("3 nodes were excluded")


@pytest.mark.parametrize(("blame", "action"), [(1.5, "restart_in_place"), (1.51, "replace_node")])
def test_a_node_is_replaced_once_its_blame_exceeds_the_limit(blame, action):
    ctx = context(node_blame_limit=2.5)
    ctx.record.blame = {"a": Blame(blame, NOW)}
    decision = decide(ctx, Fault("crash", "why", node="a"))
    assert decision.action == action
    assert ("a failed repeatedly" in decision.reason) == (action == "replace_node")


@pytest.mark.parametrize(
    ("cause", "blame", "restarted_ago_s", "action"),
    [
        ("hang", 0.5, None, "restart_container"),
        ("hang", 0.49, None, "restart_in_place"),
        ("hang", 0.5, 600.0, "restart_container"),
        ("hang", 0.5, 599.0, "restart_in_place"),
        ("launch_failed", 0.5, None, "restart_container"),
        ("hardware", 0.5, None, "restart_container"),
        ("crash", 0.5, None, "restart_in_place"),
        ("user_code", 0.5, None, "restart_in_place"),
    ],
)
def test_a_container_is_restarted_for_a_second_fault_that_it_can_cure(cause, blame, restarted_ago_s, action):
    ctx = context(container_restart_s=600.0)
    ctx.record.blame = {"a": Blame(blame, NOW)}
    if restarted_ago_s is not None:
        ctx.record.container_restarts = {"a": NOW - restarted_ago_s}
    assert decide(ctx, Fault(cause, "why", node="a")).action == action


def test_a_fault_that_a_peer_may_have_caused_replaces_no_node():
    ctx = context(node_blame_limit=0.5, lemon_incidents=1)
    for fault in (
        Fault("crash", "why", node="a", consequence=True),
        Fault("crash", "why", node="a", category="network"),
        Fault("crash", "why"),
        Fault("numerics", "why", node="a"),
    ):
        assert decide(ctx, fault).action in ("restart_in_place", "roll_back")
