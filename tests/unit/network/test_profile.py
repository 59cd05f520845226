"""The network profile: arithmetic of link flaps, what ranks get, and collisions on uplinks."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from click.testing import Result
from pydantic import ValidationError
from typer.testing import CliRunner

from megascale.cli.network import app
from megascale.core.rules import BUILTIN, RuleSet, classify_text
from megascale.errors import InputError
from megascale.job.network import Network
from megascale.model.layout import Layout
from megascale.network.ecmp import collisions, data_ring_flows
from megascale.network.profile import environment, explain


@pytest.mark.parametrize(("exponent", "seconds"), [(18, 7.5), (20, 30.1), (22, 120.3)])
def test_silence_before_an_error_is_ibs_formula(exponent: int, seconds: float) -> None:
    network = Network(ib_timeout=exponent)
    assert network.transport_seconds == pytest.approx(seconds, abs=0.05)
    (line, *_) = explain(network)
    assert f"4.096 us x 2^{exponent} x 7 = {seconds:.1f} s" in line
    assert ("break the connection" in line) == (seconds < 10)


@pytest.mark.parametrize(
    "network", [Network(), Network(ib_timeout=18, flight_recorder=0), Network(profile="node")], ids=repr
)
def test_its_lines_are_no_signs_of_a_fault(network: Network) -> None:
    for line in explain(network):
        verdict = classify_text(line, RuleSet(BUILTIN))
        assert (verdict.category, verdict.scope) == ("benign", "cause"), line


def test_the_profile_becomes_environment(tmp_path: Path) -> None:
    found = environment(Network(ib_timeout=20, ib_retry_count=6, ranks_per_root=64), tmp_path)
    assert found["NCCL_IB_TIMEOUT"] == "20"
    assert found["NCCL_IB_RETRY_CNT"] == "6"
    assert found["TORCH_NCCL_RANKS_PER_ROOT"] == "64"
    assert found["TORCH_FR_BUFFER_SIZE"] == "2000"
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "flight" / "rank-")


def test_profile_node_sets_nothing(tmp_path: Path) -> None:
    network = Network(profile="node", ib_timeout=31, nccl_timeout_seconds=1)
    assert environment(network, tmp_path) == {}
    assert len(explain(network)) == 1


def test_a_transport_that_outlasts_the_collectives_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"60 is no longer than the transport waits: .* = 120 s"):
        Network(nccl_timeout_seconds=60)


def test_collisions_agree_with_throwing_flows_at_links() -> None:
    draw = random.Random(1)
    for flows, uplinks, speedup in ((32, 32, 1), (32, 32, 2), (20, 7, 1.5)):
        slowed = speed = 0.0
        rounds = 4000
        for _ in range(rounds):
            links = [draw.randrange(uplinks) for _ in range(flows)]
            shares = [min(1.0, speedup / links.count(link)) for link in links]
            slowed += sum(share < 1 for share in shares) / flows / rounds
            speed += sum(shares) / flows / rounds
        found = collisions(flows, uplinks, speedup)
        assert found.slowed_share == pytest.approx(slowed, abs=0.02)
        assert found.mean_speed == pytest.approx(speed, abs=0.02)


def test_no_flows_and_a_single_flow_do_not_collide() -> None:
    assert collisions(0, 4).mean_speed == 1.0
    assert collisions(1, 1).slowed_share == 0.0
    with pytest.raises(ValueError, match="0 uplinks"):
        collisions(3, 0)


def test_more_flows_than_a_float_has_coefficients_for() -> None:
    many = collisions(20_000, 100)
    assert many.slowed_share == pytest.approx(1.0)
    assert many.mean_speed == pytest.approx(100 / 20_000, rel=0.01)
    assert collisions(4, 1).mean_speed == 0.25


def test_rings_leave_a_switch_once_where_its_nodes_are_in_a_row() -> None:
    layout = Layout(tensor=8, pipeline=1, data=5)
    assert data_ring_flows(["a", "a", "a", "b", "b"], layout, 8) == {"a": 8, "b": 8}
    assert data_ring_flows(["a", "b", "a", "b"], Layout(tensor=2, pipeline=1, data=4), 2) == {"a": 4, "b": 4}
    # Two stages, each a ring within its switch.
    assert data_ring_flows(["a", "a", "b", "b"], Layout(tensor=1, pipeline=2, data=4), 2) == {"a": 0, "b": 0}
    with pytest.raises(ValueError, match="2 nodes x 8 GPUs are not 8 ranks"):
        data_ring_flows(["a", "b"], Layout(tensor=8, pipeline=1, data=1), 8)


def placement(tmp_path: Path, text: str, *options: str) -> Result:
    path = tmp_path / "nodes.txt"
    path.write_text(text)
    arguments = ["collisions", "--placement", str(path), "--layout", "tp=8,dp=4", "--uplinks", "8", *options]
    return CliRunner().invoke(app, arguments)


def test_a_placement_is_compared_with_the_order_of_switches(tmp_path: Path) -> None:
    text = "# rank order\nn0 leaf-1\nn1 leaf-2\nn2 leaf-1\nn3 leaf-2\n"
    out = placement(tmp_path, text).stdout
    assert "leaf-1: 16 flows over 8 uplinks: 87% are slowed" in out
    assert (
        "32 flows leave switches, 27.7 of them slowed; with nodes in the order of their switches 16 and"
        in out
    )
    document = json.loads(placement(tmp_path, text, "--json").stdout)
    assert document["slowedFlows"] > 2 * document["slowedFlowsInOrderOfSwitches"]
    assert document["switches"]["leaf-2"]["flows"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n0 leaf-1 x\n", 'nodes.txt:1: got "n0 leaf-1 x"'),
        ("n0 leaf-1\n", "1 nodes x 8 GPUs are not 32 ranks"),
    ],
)
def test_placements_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        raise placement(tmp_path, text).exception or AssertionError


def test_the_command_line_says_it() -> None:
    arguments = ["collisions", "--flows", "32", "--uplinks", "32", "--speedup", "2"]
    out = CliRunner().invoke(app, arguments).stdout
    assert "25% are slowed by a collision, mean speed 90%" in out
