"""The network profile: arithmetic of link flaps, what ranks get, and collisions on uplinks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from megascale.cli.network import app
from megascale.core.rules import BUILTIN, RuleSet, classify_text
from megascale.job.network import Network
from megascale.network.ecmp import collisions, ring_flows
from megascale.network.profile import environment, explain


@pytest.mark.parametrize(("exponent", "seconds"), [(18, 7.5), (20, 30.1), (22, 120.3)])
def test_silence_before_an_error_is_ibs_formula(exponent: int, seconds: float) -> None:
    network = Network(ib_timeout=exponent)
    assert network.transport_seconds == pytest.approx(seconds, abs=0.05)
    (line, *_) = explain(network)
    assert f"4.096 us x 2^{exponent} x 7 = {seconds:.1f} s" in line
    assert ("break the connection" in line) == (seconds < 10)
    assert classify_text(line, RuleSet(BUILTIN)).action == "none"


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


def test_nodes_of_a_switch_in_a_row_send_one_flow_out_of_it() -> None:
    assert ring_flows(["a", "a", "a", "b", "b"], nics_per_node=8) == {"a": 8, "b": 8}
    assert ring_flows(["a", "b", "a", "b"]) == {"a": 2, "b": 2}
    assert ring_flows(["a", "a"]) == {"a": 0}


def test_the_command_line_says_it() -> None:
    arguments = ["collisions", "--flows", "32", "--uplinks", "32", "--speedup", "2"]
    out = CliRunner().invoke(app, arguments).stdout
    assert "25% are slowed by a collision, mean speed 90%" in out
