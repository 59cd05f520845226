"""Drivers that end: what is told, and when no other one is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from megascale.cli.supervisor_deaths import DriverDeaths, Progress
from megascale.errors import InputError, JobFailedError


class Lives:
    """Drivers that write a line, live for some seconds and end."""

    def __init__(self, log: Path) -> None:
        self.log, self.now_s, self.deaths = log, 0.0, DriverDeaths(log)
        self.progress: Progress = (0, 0)

    def live(self, code: int | None, *, line: str = "", seconds: float = 60.0, steps: int = 0) -> str:
        self.deaths.born(self.now_s, self.progress)
        with self.log.open("a") as log:
            log.write(line + "\n" if line else "")
        self.now_s += seconds
        self.progress = (1, self.progress[1] + steps)
        return self.deaths.died(self.now_s, code, self.progress)


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    (tmp_path / "driver.log").write_text("of another day\n")
    return Lives(tmp_path / "driver.log")


def test_wrong_input_ends_the_run_with_its_reason(lives: Lives) -> None:
    line = "2026-11-30 09:12:01 ERROR driver job=q: record.json is damaged; start over with --fresh"
    with pytest.raises(InputError, match=r"cannot run this job: record\.json is damaged") as caught:
        lives.live(2, line=line)
    assert caught.value.exit_code == 2


def test_slow_deaths_without_progress_end_the_run(lives: Lives) -> None:
    lives.progress = (1, 7)
    for _ in range(4):
        assert lives.live(1, line="TypeError: no") == "the driver ended with exit code 1 (TypeError: no)"
    with pytest.raises(JobFailedError, match=r"died 5 times in a row:\nTypeError: no\n\(.*driver\.log\)"):
        lives.live(1, line="TypeError: no")


def test_progress_makes_the_count_start_over(lives: Lives) -> None:
    for _ in range(12):
        assert lives.live(-9, steps=1) == "the driver was killed by SIGKILL"
    for _ in range(3):
        lives.live(-9)
    lives.live(-9, steps=1)
    for _ in range(3):
        lives.live(-9)
    with pytest.raises(JobFailedError):
        lives.live(-9)


def test_quick_deaths_count_even_if_ranks_go_on(lives: Lives) -> None:
    for _ in range(4):
        lives.live(-9, seconds=1.0, steps=1)
    with pytest.raises(JobFailedError, match="its log says nothing"):
        lives.live(-9, seconds=1.0, steps=1)


def test_a_driver_of_an_earlier_run_has_no_exit_code_and_maybe_no_log(lives: Lives) -> None:
    lives.log.unlink()
    lives.deaths.born(0.0, (0, 0))
    assert lives.deaths.died(60.0, None, (1, 1)) == "the driver is gone"
