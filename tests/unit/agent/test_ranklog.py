"""What a rank prints on its way from the pipe to files of bounded size."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from megascale.agent import ranklog as module
from megascale.agent.logtail import LogTail
from megascale.agent.ranklog import RankLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank-3.log"


def ended(log: RankLog) -> None:
    log.close()
    log.join(10.0)
    assert not log._thread.is_alive()


def texts(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.glob("rank-*")):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            found[file.name] = file.read_text()
    return found


def test_what_a_process_prints_is_in_the_file_and_in_the_tail(path: Path) -> None:
    log = RankLog(path, LogTail())
    with log.inlet.open("ab") as output:
        subprocess.run(["sh", "-c", "echo one; echo two >&2"], stdout=output, stderr=output, check=True)
    log.drain()
    assert log.tail.last_lines(8) == ["one", "two"]
    ended(log)
    assert path.read_text() == "one\ntwo\n"


def test_the_first_and_the_newest_files_of_a_long_log_are_kept(path: Path) -> None:
    log = RankLog(path, LogTail(), part_bytes=10, parts=3)
    with log.inlet.open("wb", buffering=0) as pipe:
        for number in range(7):
            pipe.write(b"line of %d\n" % number)
            while not any(f"of {number}" in text for text in texts(path.parent).values()):
                time.sleep(0.01)
    ended(log)
    assert texts(path.parent) == {
        "rank-3.log": "line of 0\n",
        "rank-3.5.log": "line of 5\n",
        "rank-3.6.log": "line of 6\n",
    }


def test_a_file_ends_with_a_line_unless_there_is_none(path: Path) -> None:
    log = RankLog(path, LogTail(), part_bytes=10, parts=9)
    with log.inlet.open("wb", buffering=0) as pipe:
        for written, piece in enumerate((b"half of a line", b", its end\nnext", b"x" * 20, b"y"), start=1):
            pipe.write(piece)
            while sum(len(text) for text in texts(path.parent).values()) < sum((14, 14, 20, 1)[:written]):
                time.sleep(0.01)
    ended(log)
    assert texts(path.parent) == {
        "rank-3.log": "half of a line, its end\n",
        "rank-3.1.log": "next" + "x" * 20,
        "rank-3.2.log": "y",
    }


def test_a_full_disk_costs_lines_and_not_the_rank(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, write = [8], os.write

    def write_what_fits(descriptor: int, raw: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(descriptor, raw[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(module.os, "write", write_what_fits)
    log = RankLog(path, LogTail())
    with log.inlet.open("wb", buffering=0) as pipe:
        pipe.write(b"megascale.alert " + b"x" * 20 + b"\n")
        while not log.unwritten_bytes:
            time.sleep(0.01)
        assert [match.rule for match in log.tail.new_matches()] == ["unreadableAlert"]
        room[0] = 1000
        pipe.write(b"again\n")
    ended(log)
    assert path.read_text() == "megascal\n[29 bytes of this log could not be written]\nagain\n"
    assert (log.take_unwritten(), log.take_unwritten()) == (29, 0)


def test_a_log_that_cannot_be_created_is_counted(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "nowhere" / "rank-0.log", LogTail())
    log.inlet.write_text("word\n")
    ended(log)
    assert log.unwritten_bytes == 5


def test_the_thread_lasts_as_long_as_somebody_can_print(path: Path) -> None:
    log = RankLog(path, LogTail())
    pipe = log.inlet.open("wb", buffering=0)
    log.close()
    log.join(0.05)
    assert log._thread.is_alive()
    pipe.write(b"last words\n")
    pipe.close()
    log.join(10.0)
    assert path.read_text() == "last words\n"
    log.drain()  # of a log that is closed nothing is read
    assert log.tail.last_lines(1) == ["last words"]
