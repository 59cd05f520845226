"""`megascale data` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megascale.cli.data import app
from megascale.errors import DataError


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("hello\n")
    return str(path)


def test_prepare_then_reuse_then_info(text: str, tmp_path: Path) -> None:
    prefix = str(tmp_path / "out" / "x")
    first = CliRunner().invoke(app, ["prepare", text, "--output", prefix])
    assert first.stdout == f"{prefix}: made: 1 files, 7 tokens\n"
    again = CliRunner().invoke(app, ["prepare", text, "--output", prefix])
    assert "is there already, reused (--force makes it again)" in again.stdout
    info = CliRunner().invoke(app, ["info", prefix]).stdout
    assert "sequences    1\n" in info
    assert "tokens       7\n" in info
    assert "dtype        uint16\n" in info


def test_json(text: str, tmp_path: Path) -> None:
    prefix = str(tmp_path / "x")
    made = json.loads(CliRunner().invoke(app, ["prepare", text, "-o", prefix, "--json"]).stdout)
    assert (made["made"], made["tokens"], made["sources"]) == (True, 7, [text])
    info = json.loads(CliRunner().invoke(app, ["info", f"{prefix}.idx", "--json"]).stdout)
    assert (info["prefix"], info["tokens"], info["sequences"], info["binBytes"]) == (prefix, 7, 1, 14)


def test_info_finds_a_truncated_file(text: str, tmp_path: Path) -> None:
    CliRunner().invoke(app, ["prepare", text, "-o", str(tmp_path / "x")])
    (tmp_path / "x.bin").write_bytes(b"12")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "x")])
    assert isinstance(result.exception, DataError)
    assert "is cut short: it ends at offset 2" in str(result.exception)


def test_missing_sources(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prepare", "nowhere", "-o", str(tmp_path / "x")])
    assert isinstance(result.exception, DataError)
    assert "give files, folders, or python-stdlib" in str(result.exception)


def test_a_tokenizer_is_trained_and_used(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"the cat sat on mat {n}"}) for n in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "damaged"]))
    source, output = str(tmp_path / "a.jsonl"), str(tmp_path / "bpe.json")
    trained = CliRunner().invoke(
        app, ["train-tokenizer", source, "--output", output, "--vocab-size", "300", "--text-key", "body"]
    )
    assert (
        trained.stdout == f"{output}: 300 tokens; use it with --tokenizer {output} and model.vocabSize 300\n"
    )
    arguments = ["prepare", source, "-o", str(tmp_path / "x"), "--tokenizer", output, "--text-key", "body"]
    refused = CliRunner().invoke(app, arguments)
    assert "is not JSON" in str(refused.exception)
    made = CliRunner().invoke(app, [*arguments, "--skip-bad"])
    assert made.exit_code == 0, made.output
    assert "1 documents left out" in made.stdout
