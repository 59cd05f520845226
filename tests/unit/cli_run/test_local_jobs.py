"""`logs`, `list`, `stop`, `status` and `evict` on runs that no process runs, from files alone."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from megascale.cli.list_runs import age_text
from megascale.cli.local_job import standing
from megascale.cli.logs import LineReader, LogPrinter, follow_logs
from megascale.cli.main import app
from megascale.observe.rundir import RunDir

MANIFEST = Path(__file__).parents[2] / "data" / "job.yaml"
CORE = {"term": 1, "attempt": 2, "best_step": 40, "ledger": {"started_at": 1000.0}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A job whose ranks were launched twice and that nothing runs."""
    root = tmp_path / "runs" / "tiny"
    for attempt in (1, 2):
        (root / "logs" / f"attempt-{attempt}").mkdir(parents=True)
        for rank in (0, 1, 10):
            text = "".join(f"attempt {attempt} line {n} of {rank}\n" for n in range(3))
            (root / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log").write_text(text)
    (root / "job.yaml").write_text(MANIFEST.read_text())
    run = RunDir(root)
    record(run)
    return run


def record(run: RunDir, **core: Any) -> None:
    document = {"version": 1, "job": "tiny", "term": 1, "core": CORE | core}
    run.record_file.write_text(json.dumps(document))


def end(run: RunDir, state: str = "stopped") -> None:
    record(run, state="finished", finish_state=state, finish_reason="enough")
    run.summary_file.write_text(json.dumps({"job": "tiny", "state": state, "step": 41, "steps": 100}))


@pytest.fixture
def megascale(run: RunDir) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--runs", str(run.root.parent)])

    return call


@pytest.fixture
def driver(run: RunDir) -> Iterator[None]:
    """A driver that holds the run and answers nobody."""
    run.driver_file.write_text(json.dumps({"endpoint": "127.0.0.1:1", "pid": os.getpid(), "term": 1}))
    run.token_file.write_text("token")
    with run.driver_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_logs_of_all_ranks_are_those_of_the_newest_attempt_with_the_rank_in_front(
    megascale: Callable[..., Result], run: RunDir
) -> None:
    result = megascale("logs", "tiny", "--tail", "1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"rank {rank}: attempt 2 line 2 of {rank}" for rank in (0, 1, 10)]
    assert result.stderr == f"attempt 2: {run.root}/logs/attempt-2/rank-*.log\n"


def test_logs_of_one_rank_are_printed_as_they_are(megascale: Callable[..., Result]) -> None:
    result = megascale("logs", "tiny", "--rank", "10", "--attempt", "1")
    assert result.stdout.splitlines() == [f"attempt 1 line {n} of 10" for n in range(3)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "--attempt", "3"), "--attempt 3: no such logs; there are attempts 1, 2"),
        (("tiny", "--rank", "2"), "--rank 2: no log in attempt 2; there are ranks 0, 1, 10"),
        (("tinny",), "tinny: no such run, did you mean tiny?; runs in"),
    ],
)
def test_logs_that_are_not_there_are_refused_with_those_that_are(
    megascale: Callable[..., Result], arguments: tuple[str, ...], said: str
) -> None:
    result = megascale("logs", *arguments)
    assert said in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 2


def test_following_prints_each_attempt_to_its_end_and_ends_with_the_job(run: RunDir) -> None:
    out, said, looks = io.BytesIO(), [], 0
    printer = LogPrinter(run, frozenset({0}), out, said.append, None)

    def wait() -> None:
        nonlocal looks
        looks += 1
        with run.rank_log(2, 0).open("a") as log:
            log.write("late\nno line end")
        for attempt in (3, 4):
            run.logs(attempt).mkdir()
            run.rank_log(attempt, 0).write_text(f"attempt {attempt}\n")

    follow_logs(printer, lambda: looks > 0, wait, None)
    lines = out.getvalue().decode().splitlines()
    assert lines[3:] == ["late", "no line end", "attempt 3", "attempt 4"]
    assert [text.partition(":")[0] for text in said] == ["attempt 2", "attempt 3", "attempt 4"]


def test_following_one_attempt_does_not_go_on_to_the_next(run: RunDir) -> None:
    out = io.BytesIO()
    follow_logs(LogPrinter(run, frozenset({1}), out, lambda _: None, 0), lambda: True, lambda: None, 1)
    assert out.getvalue() == b""


@pytest.mark.parametrize(
    ("text", "tail", "lines"),
    [
        ("a\nb\nc\n", 2, [b"b", b"c"]),
        ("a\nb\nc", 2, [b"b", b"c"]),
        ("a\nb\n", 9, [b"a", b"b"]),
        ("", 3, []),
        ("a\n", 0, []),
    ],
)
def test_a_tail_is_the_last_lines(tmp_path: Path, text: str, tail: int, lines: list[bytes]) -> None:
    (tmp_path / "log").write_text(text)
    reader = LineReader(tmp_path / "log", tail)
    assert [*reader.new_lines(), *reader.rest()] == lines


def test_a_log_is_read_from_part_to_part_though_some_were_deleted(tmp_path: Path) -> None:
    first = tmp_path / "rank-1.log"
    first.write_bytes(b"a\nb\n")
    reader = LineReader(first)
    assert list(reader.new_lines()) == [b"a", b"b"]
    with first.open("ab") as log:
        log.write(b"c\n")
    (tmp_path / "rank-1.3.log").write_bytes(b"d\n")
    (tmp_path / "rank-1.10.log").write_bytes(b"e\nf")
    (tmp_path / "rank-11.1.log").write_bytes(b"another rank\n")
    assert list(reader.new_lines()) == [b"c", b"d", b"e"]
    assert list(reader.rest()) == [b"f"]
    assert list(LineReader(first, tail=2).new_lines()) == [b"e"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * (1 << 20))
    assert max(map(len, LineReader(tmp_path / "log").new_lines())) <= 320 * 1024


def test_list_says_how_each_run_stands(megascale: Callable[..., Result], run: RunDir) -> None:
    run.metrics_file.write_text('{"step": 43, "attempt": 2}\n{"step": 4')
    other = run.root.parent / "worse"
    other.mkdir()
    (other / "job.yaml").write_text("spec: 1")
    (other / "record.json").write_text("{")
    document = json.loads(megascale("list", "--json").stdout)
    tiny, worse = document["runs"]
    steps = standing(run).steps
    assert (tiny["job"], tiny["state"], tiny["step"], tiny["steps"]) == ("tiny", "interrupted", 43, steps)
    assert (tiny["attempt"], tiny["startedAt"]) == (2, 1000.0)
    assert worse["state"] == "damaged"
    assert "record.json is damaged" in worse["reason"]
    end(run, "failed")
    table = megascale("list").stdout.splitlines()
    assert table[0].split() == ["JOB", "STATE", "STEP", "ATTEMPT", "AGE"]
    assert table[1].split()[:4] == ["tiny", "failed", f"43/{steps}", "2"]


def test_list_of_no_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--runs", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"no runs in {tmp_path}/" in result.stderr


def test_ages_are_short() -> None:
    assert [age_text(s) for s in (5, 60, 3599, 7200, 90_000)] == ["5s", "1m", "59m", "2h", "1d"]


def test_commands_on_an_ended_job_say_so(megascale: Callable[..., Result], run: RunDir) -> None:
    end(run)
    said = "tiny has ended: stopped at step 40 (enough)"
    stopped = megascale("stop", "tiny")
    assert (stopped.exit_code, stopped.stdout.startswith(said)) == (0, True)
    assert json.loads(megascale("stop", "tiny", "--json").stdout)["step"] == 41
    status = megascale("status", "tiny", "--json")
    assert (status.exit_code, json.loads(status.stdout)["step"]) == (0, 41)
    assert said in status.stderr
    assert "41 / 100" in megascale("status", "tiny").stdout
    evicted = megascale("evict", "node-0", "--job", "tiny", "--reason", "fan")
    assert said in str(evicted.exception)
    assert getattr(evicted.exception, "exit_code", None) == 2


@pytest.mark.parametrize(
    "arguments", [("stop", "tiny"), ("status", "tiny"), ("evict", "n", "--job", "tiny", "--reason", "x")]
)
def test_commands_on_an_interrupted_job_say_so(
    megascale: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    result = megascale(*arguments)
    assert "tiny is not running: it was interrupted at step 40" in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 3


@pytest.mark.usefixtures("driver")
def test_a_driver_that_does_not_answer_is_told_of(megascale: Callable[..., Result]) -> None:
    result = megascale("stop", "tiny")
    assert "the driver does not answer (UNAVAILABLE)" in str(result.exception)
    assert getattr(result.exception, "exit_code", None) == 3
    assert json.loads(megascale("list", "--json").stdout)["runs"][0]["state"] == "assembling"


def test_following_ends_at_once_for_a_job_that_was_interrupted(megascale: Callable[..., Result]) -> None:
    result = megascale("logs", "tiny", "-f", "--rank", "0")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
