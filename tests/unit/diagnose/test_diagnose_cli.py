"""What `megascale diagnose` refuses, and how."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megascale.cli.main import app
from megascale.errors import InputError, UnreachableError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--light"),
        (["--light", "--nodes", "10.0.0.1"], "expected HOST:PORT"),
        (["--light", "--nodes", "127.0.0.1:1", "--simulate-nodes", "2"], "exclude each other"),
        (["--light", "--simulate-nodes", "1"], "expected 2 to 32"),
        (["--light", "--simulate-nodes", "2", "--inject", "2=slow"], "a node from 0 to 1"),
        (["--light", "--simulate-nodes", "2", "--inject", "1=fire"], "wrong-bits, slow, hang"),
        (["--light", "--nodes", "127.0.0.1:1", "--inject", "1=slow"], "start the others"),
        (["--light", "--nodes", "127.0.0.1:1", "--baseline", "x"], "nodes have peers"),
        (["--light", "--nodes", "127.0.0.1:1", "--token-file", "/absent"], "No such file"),
        (["--light", "--inject", "fire"], "wrong-bits, slow, hang"),
    ],
)
def test_bad_usage_is_said_before_anything_runs(options, says):
    result = CliRunner().invoke(app, ["diagnose", *options])
    assert isinstance(result.exception, InputError), result.output
    assert says in str(result.exception)


def test_nodes_that_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = CliRunner().invoke(app, ["diagnose", "--light", "--nodes", f"127.0.0.1:{port}"])
    assert isinstance(result.exception, UnreachableError)
    assert result.exception.exit_code == 3
    assert f"127.0.0.1:{port}" in str(result.exception)


def test_the_program_of_nodes_does_not_listen_for_others_without_a_token(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "megascale.diagnose", "--serve", "0.0.0.0:0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--token-file" in done.stderr


def test_the_pure_parts_and_the_node_program_start_without_torch():
    code = (
        "import sys, megascale.diagnose.__main__, megascale.diagnose.coordinator;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'rich', 'typer')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
