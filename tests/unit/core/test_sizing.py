"""Spares, cadence, replay and placement: pure arithmetic."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.core.contract import effects as fx
from megascale.core.decide.cadence import choose, mtbf_s
from megascale.core.decide.placement import arranged, refilled
from megascale.core.decide.replay import plan_replay
from megascale.core.decide.spares import spares_for


@pytest.mark.parametrize(("machines", "spares"), [(128, 2), (256, 2), (512, 3), (1024, 4)])
def test_spares_as_byterobust_publishes_them(machines, spares):
    assert spares_for(machines, 0.0012) == spares


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
