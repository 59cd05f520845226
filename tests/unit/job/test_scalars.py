"""Plain scalars: YAML 1.2 values, and refusals where YAML 1.1 differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.job.scalars import RefusedScalarError, read_plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("true", True),
        ("FALSE", False),
        ("0", 0),
        ("-17", -17),
        ("+5", 5),
        ("0xff", 255),
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.25", -0.25),
        ("tRuE", "tRuE"),
        ("1.2.3", "1.2.3"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("node-0", "node-0"),
        ("e5", "e5"),
        ("_1", "_1"),
        ("yesterday", "yesterday"),
        ("12:", "12:"),
    ],
)
def test_values(text: str, value: object) -> None:
    read = read_plain(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "Yes",
        "YES",
        "no",
        "on",
        "Off",
        "OFF",
        "y",
        "N",
        "012",
        "-07",
        "089",
        "0o17",
        "0b101",
        "0x_f",
        "-0xf",
        "1_000",
        "1_0.5",
        "1:30",
        "190:20:30.15",
        "2024-01-01",
        "2024-01-01T10:00:00Z",
        "<<",
        "=",
        ".inf",
        "-.INF",
        ".nan",
        "1e999",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(RefusedScalarError, match=r"can be read two ways|finite|too large") as caught:
        read_plain(text)
    assert text in str(caught.value)


def test_numbers_of_absurd_length_are_refused() -> None:
    with pytest.raises(RefusedScalarError, match="5000 digits"):
        read_plain("9" * 5000)


@given(st.integers(-(2**63), 2**63))
def test_integers_read_back(value: int) -> None:
    assert read_plain(str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back(value: float) -> None:
    assert read_plain(repr(value)) == value
