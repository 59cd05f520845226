"""Exit codes and streams of the whole program."""

from __future__ import annotations

import subprocess
import sys

import pytest


def megascale(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from megascale.cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--help",), 0, "Train large language models"),
        (("--version",), 0, "megascale"),
        (("run", "--help"), 0, "Ctrl-C"),
        (("nonsense",), 2, "nonsense"),
        (("run",), 2, "JOB.YAML"),
        (("run", "no-such-file.yaml"), 2, "no-such-file.yaml"),
        (("status", "no-such-job", "--runs", "no-such-folder"), 2, "no-such-job"),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = megascale(*arguments)
    assert result.returncode == code
    assert said in (result.stdout if code == 0 else result.stderr)
    assert "Traceback" not in result.stderr


def test_heavy_libraries_are_not_imported_for_help() -> None:
    probe = (
        "import sys, megascale.cli.main; print([m for m in ('torch', 'numpy', 'grpc') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_switches_are_shown_without_a_type() -> None:
    for arguments in (("--help",), ("run", "--help"), ("job", "validate", "-h")):
        shown = megascale(*arguments).stdout
        assert "<bool>" not in shown
        assert "-h" in shown
    assert "<path>" in megascale("run", "--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(shell: str) -> None:
    script = megascale("completion", shell)
    assert script.returncode == 0
    assert f"complete_{shell}" in script.stdout
    assert "--show-completion" not in megascale("--help").stdout
