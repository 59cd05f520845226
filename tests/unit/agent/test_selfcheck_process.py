"""How the check of a node's numbers is run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from megascale.agent import selfcheck as module
from megascale.agent.selfcheck import CHECK, wrong_numbers

WRONG = 'echo \'{"kind": "wrong", "reason": "a product differs"}\''


def test_the_check_is_the_light_one_of_this_node() -> None:
    assert CHECK[0] == sys.executable
    assert CHECK[1:] == ("-m", "megascale.diagnose", "--light", "--local", "--json")


def test_only_what_the_check_prints_counts(capfd: pytest.CaptureFixture[str]) -> None:
    script = f"cat; echo noise >&2; {WRONG}; exit 1"
    assert asyncio.run(wrong_numbers(20.0, ("/bin/sh", "-c", script))) == "a product differs"
    assert capfd.readouterr() == ("", "")


def test_a_verdict_without_a_reason_convicts_nobody() -> None:
    assert asyncio.run(wrong_numbers(20.0, ("/bin/sh", "-c", 'echo \'{"kind": "wrong"}\''))) == ""


def test_a_check_that_hangs_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ("/bin/sh", "-c", f"echo $$ > {pid}; exec sleep 60")
    assert asyncio.run(wrong_numbers(1.0, command)) == ""
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


def test_a_check_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(wrong_numbers(1.0, ("/nonexistent",)))


class EndsMeanwhile:
    """A process that ends after the deadline and before it is killed."""

    pid = 0
    returncode: int | None = None

    async def communicate(self) -> tuple[bytes, bytes]:
        raise TimeoutError

    def kill(self) -> None:
        raise ProcessLookupError

    async def wait(self) -> int:
        self.returncode = 0
        return 0


def test_a_check_that_ends_before_it_is_killed_is_only_late(monkeypatch: pytest.MonkeyPatch) -> None:
    process = EndsMeanwhile()

    async def start(*_command: str, **_pipes: int) -> EndsMeanwhile:
        return process

    monkeypatch.setattr(module.asyncio, "create_subprocess_exec", start)
    assert asyncio.run(wrong_numbers(1.0)) == ""
    assert process.returncode == 0
