"""Progress where no terminal is."""

from __future__ import annotations

import pytest

from megascale.cli import data


def test_a_line_every_half_minute_and_none_for_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    on_progress = data._plain_lines("preparing x", lambda: now[0])
    for at, millions in ((5.0, 1), (31.0, 5), (40.0, 6), (62.0, 10), (100.0, 20)):
        now[0] = at
        on_progress(millions * 1_000_000, 20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "preparing x: 5.0 of 20.0 MB, 25%",
        "preparing x: 10.0 of 20.0 MB, 50%",
    ]


def test_without_a_terminal_lines_take_the_place_of_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_LINE_EVERY_S", 0.0)
    with data.progress_bar("preparing x") as on_progress:
        on_progress(1_000_000, 4_000_000)
    assert capsys.readouterr().err == "preparing x: 1.0 of 4.0 MB, 25%\n"
