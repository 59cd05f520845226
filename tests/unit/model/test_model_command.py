from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from megascale.cli.model import app, parse_layout
from megascale.errors import InputError
from megascale.job.presets import PRESETS
from megascale.model.layout import Layout


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def show(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("show", *arguments, "--json"))
    return found


def test_list_has_every_preset() -> None:
    rows = json.loads(run("list", "--json"))
    assert [row["preset"] for row in rows] == list(PRESETS)
    text = run("list")
    assert all(preset in text for preset in PRESETS)


def test_the_papers_largest_run() -> None:
    found = show("gpt-175b", "--layout", "tp=8,pp=8,dp=192,vpp=6,sp", "--global-batch", "6144")
    assert found["gpus"] == 12_288
    assert found["tokensPerStep"] == 6144 * 2048
    assert found["pipelineBubble"]["idleOverWork"] == 7 / (6 * 32)
    assert found["memoryPerGpu"]["total"] < 80e9
    assert {item["link"] for item in found["communication"]} == {"node", "network"}
    assert sum(found["bytesPerLink"].values()) == sum(i["bytesPerStep"] for i in found["communication"])


def test_a_window_lowers_only_the_attended_count() -> None:
    whole, windowed = (
        show("gpt-175b", *arguments)["flopsPerStep"] for arguments in ([], ["--window", "256"])
    )
    assert windowed["windowAware"] < whole["windowAware"] == whole["causal"] == windowed["causal"]
    assert windowed["square"] == whole["square"] > whole["causal"]


def test_the_text_holds_the_figures() -> None:
    text = run("show", "dbrx", "--layout", "tp=8,pp=4,dp=8,sp")
    for part in (
        "131,",
        "36.5B of them per token",
        "256 GPUs",
        "pipeline bubble",
        "network  data: gradients",
    ):
        assert part in text
    assert "1 GPU, 8,192 tokens" in (alone := run("show", "tiny"))
    assert "nothing is sent" in alone


def test_layouts() -> None:
    assert parse_layout("tp=2, pp=4,vpp=3,sp") == Layout(2, 4, 1, interleave=3, sequence=True)
    for wrong in ("tp=0", "tp", "sp=1", "ep=2", "tp=two"):
        with pytest.raises(InputError, match="such as tp=8,pp=8,dp=192,sp"):
            parse_layout(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt-3",), "PRESET is gpt-3, expected one of tiny"),
        (("tiny", "--layout", "tp=3"), "attentionHeads: 4 is not a multiple of 3"),
        (("tiny", "--layout", "vpp=2"), "vpp needs pp"),
        (("tiny", "--layout", "tp=2,dp=2,tp=4"), "--layout is tp=2,dp=2,tp=4: names tp twice"),
        (("tiny", "--layout", "dp=4", "--global-batch", "6"), "--global-batch is 6, expected a multiple"),
        (("tiny", "--block", "both"), "--block is both"),
        (("tiny", "--optimizer", "sgd"), "--optimizer is sgd"),
    ],
)
def test_wrong_input_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["show", *arguments], catch_exceptions=False)
