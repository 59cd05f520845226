"""Counts and durations as people read them."""

from __future__ import annotations

from megascale.cli.words import duration_text, plural


def test_counts_have_the_word_in_the_right_number() -> None:
    assert [plural(count, "restart") for count in (0, 1, 2000)] == [
        "0 restarts",
        "1 restart",
        "2,000 restarts",
    ]
    assert plural(2, "driver life", "driver lives") == "2 driver lives"


def test_durations_have_two_units() -> None:
    seconds = (0.2, 59, 200, 18_180, 1_051_200)
    assert [duration_text(s) for s in seconds] == ["0 s", "59 s", "3 min 20 s", "5 h 3 min", "12 d 4 h"]
