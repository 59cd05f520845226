"""Spares, cadence, replay and placement: pure arithmetic."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.core.contract import effects as fx
from megascale.core.decide.cadence import choose, mtbf_s
from megascale.core.decide.placement import arranged, refilled
from megascale.core.decide.replay import ReplayPlan, plan_replay
from megascale.core.decide.spares import spares_for


@pytest.mark.parametrize(("machines", "spares"), [(128, 2), (256, 2), (512, 3), (1024, 4)])
def test_spares_as_byterobust_publishes_them(machines, spares):
    assert spares_for(machines, 0.0012) == spares


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.0, 0.2))
def test_spares_cover_and_one_fewer_would_not(nodes, p):
    spares = spares_for(nodes, p)

    def covered(count):
        terms = (
            math.lgamma(nodes + 1) - math.lgamma(k + 1) - math.lgamma(nodes - k + 1)
            + (k * math.log(p) if k else 0.0) + (nodes - k) * math.log1p(-p)
            for k in range(count + 1)
        )  # fmt: skip
        return sum(math.exp(term) for term in terms)

    if p > 1e-9:
        assert covered(spares) >= 0.99 - 1e-6 or spares == nodes
        assert spares == 0 or covered(spares - 1) < 0.99 + 1e-6
    else:
        assert spares == 0


def test_spares_of_a_large_fleet_and_of_a_long_repair():
    assert spares_for(100_000, 0.004) > 400
    assert spares_for(512, 0.0012, repair_days=7.0) > spares_for(512, 0.0012)
    assert spares_for(3, 1.0) == 3
    with pytest.raises(ValueError, match="probability"):
        spares_for(3, 1.5)


@given(st.floats(0.01, 300), st.floats(0.05, 60), st.floats(600, 1e6))
def test_cadence_is_near_the_optimum_and_within_its_bounds(save_s, step_s, mtbf):
    found = choose(save_s=save_s, step_s=step_s, mtbf_s=mtbf)
    optimum = math.sqrt(2 * save_s * mtbf)
    wanted = min(3600.0, max(optimum, 100 * save_s, step_s))
    assert abs(found.interval_s - wanted) <= step_s
    assert found.steps * step_s == pytest.approx(found.interval_s)
    assert "a failure comes every" in found.reason


def test_cadence_agrees_with_the_published_optima():
    """Facts 3.5: 6.5e-3 failures per node-day, 1,536 nodes: 30 s of blocking write -> 12 min."""
    failures_s = mtbf_s(0, 0.0, nodes=1536, node_failures_per_day=6.5e-3)
    assert failures_s / 3600 == pytest.approx(2.4, abs=0.05)
    found = choose(save_s=5.0, step_s=1.0, mtbf_s=failures_s)
    assert found.interval_s == pytest.approx(
        500.0
    )  # saving 5 s may cost 1%; the optimum alone would be 294 s
    assert math.sqrt(2 * 30.0 * failures_s) / 60 == pytest.approx(12, abs=0.2)


def test_measured_failures_move_the_estimate():
    calm = mtbf_s(0, 30 * 86400.0, nodes=16, node_failures_per_day=3.8e-3)
    rough = mtbf_s(60, 30 * 86400.0, nodes=16, node_failures_per_day=3.8e-3)
    assert rough < 100_000.0 < calm


def test_launch_names_the_cadence_it_chose(running):
    job = running(2, auto_cadence=True)
    job.train(50, stall_seconds=0.0).commit(20).train(50, stall_seconds=0.5).commit(80)
    job.exit(1, sig=9).done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    assert launch.save_every_steps > 1
    assert f"every {launch.save_every_steps} steps" in launch.reason


@pytest.mark.parametrize(("nodes", "pipeline"), [(64, 1), (64, 4), (144, 3), (1152, 8), (8, 1)])
def test_replay_names_a_single_node(nodes, pipeline):
    names = [f"n-{i}" for i in range(nodes)]
    plan = plan_replay(names, pipeline_nodes=pipeline)
    for groups in (plan.horizontal, plan.vertical):
        assert sorted(itertools.chain(*groups)) == sorted(names)
        assert all(len(group) % pipeline == 0 for group in groups)
    for bad in names[:: max(1, nodes // 20)]:
        rows = [i for i, group in enumerate(plan.horizontal) if bad in group]
        columns = [i for i, group in enumerate(plan.vertical) if bad in group]
        assert plan.convict(rows, columns) == (bad,)
    assert plan.convict([], []) == ()


def test_replay_with_few_copies_names_few_nodes():
    plan = plan_replay([f"n-{i}" for i in range(32)], pipeline_nodes=8)
    found = plan.convict([0], [0])
    assert "n-0" in found
    assert len(found) <= 2


def test_replay_needs_whole_pipelines():
    with pytest.raises(ValueError, match="whole number"):
        plan_replay(["a", "b", "c"], pipeline_nodes=2)


def test_stages_stay_inside_a_rack():
    domains = {f"n-{i}": (f"spine-{i % 2}", f"rack-{i % 4}") for i in range(16)}
    order = arranged(list(domains), domains, 16, 4)
    for stage in range(4):
        assert len({domains[name] for name in order[stage * 4 : stage * 4 + 4]}) == 1
    assert [domains[order[i]][0] for i in (0, 4, 8, 12)] == ["spine-0", "spine-0", "spine-1", "spine-1"]


def test_rack_that_fits_best_is_filled_first():
    domains = {**{f"a-{i}": ("a",) for i in range(6)}, **{f"b-{i}": ("b",) for i in range(4)}}
    order = arranged(list(domains), domains, 8, 4)
    assert {name[0] for name in order[:4]} == {"a"}
    assert {name[0] for name in order[4:]} == {"b"}


def test_without_labels_nodes_keep_their_order():
    names = [f"n-{i}" for i in range(12)]
    assert arranged(names, {}, 10, 5) == names[:10]


def test_hole_is_filled_from_the_same_rack():
    domains = {f"n-{i}": ("s", f"rack-{i // 4}") for i in range(16)}
    usable = [f"n-{i}" for i in range(16) if i != 5]
    before = [f"n-{i}" for i in range(14) if i != 7]
    order = refilled(before, usable, domains, 13)
    assert order[before.index("n-5")] == "n-7"
    assert [n for n in order if n != "n-7"] == [n for n in before if n != "n-5"]


def test_spare_of_the_same_rack_is_chosen_in_a_running_job(running):
    job = running(6, spare_nodes=2, topology_keys=("rack",), labels=lambda i: {"rack": f"r-{i % 2}"})
    lost = job.record.assignment[1]
    parity = int(lost.split("-")[1]) % 2
    job.goes(lost).done(fx.Kill)
    assert int(job.record.assignment[1].split("-")[1]) % 2 == parity


@pytest.mark.parametrize(
    "wrong", [{"step_s": 0.0}, {"step_s": -1.0}, {"mtbf_s": 0.0}, {"mtbf_s": -1.0}, {"save_s": -0.1}]
)
def test_a_cadence_needs_positive_times(wrong):
    with pytest.raises(ValueError, match="expected positive times, got save_s="):
        choose(**{"save_s": 1.0, "step_s": 1.0, "mtbf_s": 3600.0, **wrong})


def test_a_cadence_says_what_it_was_chosen_from():
    found = choose(save_s=0.5, step_s=2.0, mtbf_s=7200.0)
    assert (found.steps, found.interval_s) == (42, 84.0)
    assert found.reason == (
        "every 42 steps (84 s): a save blocks 0.50 s, a failure comes every 2.0 h, "
        "the least is lost at 85 s, and saving may cost 1% at most"
    )
    assert choose(save_s=0.0, step_s=2.0, mtbf_s=7200.0).steps == 1
    assert choose(save_s=1000.0, step_s=1.0, mtbf_s=1e9).interval_s == 3600.0
    assert choose(save_s=0.0, step_s=5000.0, mtbf_s=7200.0).steps == 1


def test_the_expected_rate_of_failures_weighs_as_two():
    assert mtbf_s(0, 0.0, nodes=2, node_failures_per_day=0.5) == 86400.0
    assert mtbf_s(2, 4 * 86400.0, nodes=2, node_failures_per_day=0.5) == pytest.approx(1.5 * 86400.0)


def test_a_job_measures_its_cadence_by_its_own_saves_and_failures(running):
    job = running(2, auto_cadence=True, node_failures_per_day=0.01).train(50)
    job.exit(1, sig=9).done(fx.Kill)
    assert job.heard(fx.Launch)[-1].save_every_steps == 0
    job.done(fx.Launch).train(10, stall_seconds=1.0).commit(5).train(10, stall_seconds=4.0).commit(15)
    job.exit(1, sig=9).done(fx.Kill)
    launch = job.heard(fx.Launch)[-1]
    wall_s = job.record.ledger.wall_s()
    expected = choose(save_s=2.0, step_s=1.0, mtbf_s=mtbf_s(2, wall_s, nodes=2, node_failures_per_day=0.01))
    assert launch.save_every_steps == expected.steps
    assert launch.reason.endswith(f"; checkpoints {expected.reason}")


@pytest.mark.parametrize(
    "wrong",
    [{"nodes": 0}, {"p": -0.1}, {"p": 1.1}, {"repair_days": 0.0}, {"confidence": 0.0}, {"confidence": 1.0}],
)
def test_spares_need_sensible_figures(wrong):
    figures = {"nodes": 3, "p": 0.1, "repair_days": 1.0, "confidence": 0.9, **wrong}
    with pytest.raises(ValueError, match="expected nodes >= 1"):
        spares_for(
            figures["nodes"],
            figures["p"],
            repair_days=figures["repair_days"],
            confidence=figures["confidence"],
        )


def test_spares_by_hand():
    # Of one node that fails half of the days: none in half of the days, one in all.
    assert spares_for(1, 0.5, confidence=0.49) == 0
    assert spares_for(1, 0.5, confidence=0.5) == 0
    assert spares_for(1, 0.5, confidence=0.51) == 1
    # Of two: at most one fails in three of four days, and over two days in 7 of 16.
    assert spares_for(2, 0.5, confidence=0.74) == 1
    assert spares_for(2, 0.5, confidence=0.76) == 2
    assert spares_for(2, 0.5, repair_days=2.0, confidence=0.43) == 1
    assert spares_for(2, 0.5, repair_days=2.0, confidence=0.44) == 2
    assert spares_for(1, 0.0) == 0


def test_replay_is_told_to_a_person():
    pair = plan_replay(["n-0", "n-1"], pipeline_nodes=1).instructions()
    assert "on 2 groups of 1 node, first" in pair
    assert "every 2nd node" in pair
    for groups, words in ((3, "3rd"), (11, "11th"), (13, "13th"), (21, "21st")):
        rows = tuple((f"n-{i}",) for i in range(groups))
        assert f"every {words} node" in ReplayPlan(rows, rows).instructions()
    plan = plan_replay([f"n-{i}" for i in range(12)], pipeline_nodes=2)
    assert plan.horizontal[1] == ("n-2", "n-3")
    assert plan.vertical[1] == ("n-1", "n-7")
    assert plan.instructions() == (
        "replay the steps on 6 groups of 2 nodes, first neighbours in rank order, then every 6th node: "
        "the two groups with other numbers share the node that computes them"
    )


def test_replay_takes_the_largest_groups_that_name_one_node():
    plan = plan_replay([f"n-{i}" for i in range(36)], pipeline_nodes=1)
    assert {len(group) for group in plan.horizontal} == {6}
    with pytest.raises(ValueError, match="0 nodes are no whole number of pipelines of 1 nodes"):
        plan_replay([], pipeline_nodes=1)
    with pytest.raises(ValueError, match="whole number"):
        plan_replay(["a"], pipeline_nodes=0)


def test_nodes_are_chosen_again_while_they_are_usable(running):
    job = running(4, spare_nodes=1)
    before = job.record.assignment
    job.exit(0, sig=9).done(fx.Kill)
    assert job.record.assignment == before


def test_idle_nodes_that_are_nearest_fill_the_holes():
    domains = {"a": ("s1", "r1"), "b": ("s1", "r2"), "c": ("s1", "r2"), "d": ("s2", "r2"), "e": ("s1", "")}
    assert refilled(["x", "a"], ["a", "b", "d"], {**domains, "x": ("s2", "r2")}, 2) == ["d", "a"]
    assert refilled(["x", "a"], ["a", "d", "c"], {**domains, "x": ("s1", "r2")}, 2) == ["c", "a"]
    assert refilled(["x", "a"], ["a", "d", "e"], {**domains, "x": ("s1", "")}, 2) == ["e", "a"]
    assert refilled(["a"], ["a", "d", "b", "c"], domains, 3) == ["a", "b", "c"]


def test_a_narrow_domain_counts_only_within_the_same_wide_one():
    domains = {"x": ("s1", "r1"), "far": ("s2", "r1"), "near": ("s1", "r9")}
    assert refilled(["x"], ["far", "near"], domains, 1) == ["near"]


def test_domains_are_ordered_from_the_widest(running):
    labels = {"n-0": ("s1", "r1"), "n-1": ("s1", "r2"), "n-2": ("s2", "r1"), "n-3": ("s1", "r3")}
    job = running(
        2,
        spare_nodes=2,
        topology_keys=("rack", "spine"),
        labels=lambda i: dict(zip(("spine", "rack"), labels[f"n-{i}"], strict=True)),
    )
    kept, lost = job.record.assignment
    job.goes(lost).done(fx.Kill)
    spine = {name: labels[name][0] for name in labels}
    same = [n for n in labels if n not in (kept, lost) and spine[n] == spine[lost]]
    assert job.record.assignment[1] in same


def test_what_fits_nowhere_is_taken_from_the_largest_remainders():
    domains = {**{f"a-{i}": ("a",) for i in range(3)}, **{f"b-{i}": ("b",) for i in range(2)}, "c-0": ("c",)}
    assert arranged(list(domains), domains, 5, 4) == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert arranged(list(domains), domains, 5, 2) == ["a-0", "a-1", "b-0", "b-1", "a-2"]
    assert arranged(list(domains), domains, 4, 3) == ["a-0", "a-1", "a-2", "b-0"]
