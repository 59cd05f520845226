"""The supervisor of a run: every driver that ends is told of, and a row of quick deaths ends the run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megascale.cli.supervisor import Supervisor
from megascale.errors import JobFailedError
from megascale.observe.rundir import RunDir


class Lines:
    """A view that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, _document: dict[str, Any]) -> None: ...

    def summary(self, _document: dict[str, Any]) -> None: ...

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_error: object) -> None: ...


class Dying(Supervisor):
    """Drivers that kill themselves after their connection broke: as a killed process does for a moment."""

    def __init__(self, run: RunDir, view: Lines, lives: int) -> None:
        super().__init__(run, view)
        self.lives = lives

    def _start_driver(self) -> None:
        self.lives -= 1
        code = "import os, sys; sys.stdin.read(); os.kill(os.getpid(), 9)"
        self._driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)

    async def _watch(self) -> bool:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        if self.lives == 0:
            self._driver.wait()
        return self.lives == 0


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "driver.log").write_text("out of memory\n")
    return RunDir(tmp_path)


def test_a_driver_that_dies_after_its_connection_is_told_of(run: RunDir) -> None:
    view = Lines()
    asyncio.run(Dying(run, view, lives=2)._follow(owner=True))
    assert view.notes == ["the driver was killed by SIGKILL; starting the next one, training goes on"]


def test_drivers_that_die_in_a_row_end_the_run(run: RunDir) -> None:
    with pytest.raises(JobFailedError, match=r"died 5 times in a row:\nout of memory"):
        asyncio.run(Dying(run, Lines(), lives=20)._follow(owner=True))
