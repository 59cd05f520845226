"""Lines of a file whose disk gets full: they are whole, left out, or counted."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from megascale.observe import lines as module
from megascale.observe.alerts import alert
from megascale.observe.lines import LineFile


class Disk:
    """Takes so many bytes; `before_stat` is what another writer does once a line was cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.other = lambda: None
        self._write = os.write
        monkeypatch.setattr(module.os, "write", self.write)

    def write(self, descriptor: int, raw: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self._write(descriptor, raw[: self.room])
        self.room -= written
        if written < len(raw):
            self.other()
        return written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m" / "metrics.jsonl"


def alerts(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("megascale.alert ")) for line in capsys.readouterr().err.splitlines()
    ]


def test_a_line_that_does_not_fit_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    lines = LineFile(path, lambda: now[0])
    disk = Disk(monkeypatch, room=10)
    for number, now[0] in enumerate((0.0, 1.0, 2.0, 61.0, 62.0)):
        lines.append(f"line {number}")
    assert path.read_text() == "line 0\n"
    assert lines.dropped == 4
    found = alerts(capsys)
    assert [alert["kind"] for alert in found] == ["linesLeftOut"] * 2
    assert "No space left on device" in found[0]["message"]
    assert "(1 so far)" in found[0]["message"]
    assert "(3 so far)" in found[1]["message"]
    disk.room = 1000
    lines.append("line 5")
    assert path.read_text() == "line 0\nline 5\n"
    lines.close()


def test_a_torn_line_that_another_writer_has_followed_is_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = LineFile(path)
    disk = Disk(monkeypatch, room=3)

    def append_of_another() -> None:
        with path.open("ab", buffering=0) as other:
            other.write(b"other\n")

    disk.other = append_of_another
    lines.append("12345")
    disk.room = 1000
    lines.append("next")
    assert path.read_text() == "123other\n\nnext\n"


def test_an_alert_that_cannot_be_written_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    alert("someKind", "text")
