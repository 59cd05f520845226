"""Users' patterns: RE2's syntax, time linear in the text, and errors that name the cause."""

from __future__ import annotations

import time

import pytest

from megascale.core.contract.patterns import LinearPattern, PatternError, linear_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("GPU fell off", "kernel: GPU fell off the bus", True),
        ("gpu fell off", "kernel: GPU fell off the bus", False),
        ("(?i)gpu fell off", "kernel: GPU fell off the bus", True),
        (r"ECC.*row \d+", "ECC error in row 12", True),
        (r"^ECC", "an ECC error", False),
        (r"error$", "an ECC error", True),
        (r"error$", "an ECC error\nand more", False),
        ("é+", "caféé", True),
        ("a.c", "a\udcffc", True),
    ],
)
def test_where_a_pattern_is_found(pattern: str, text: str, found: bool) -> None:
    assert LinearPattern(pattern).search(text) is found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"RE2 accepts: missing \)"),
        (r"(a)\1", r"RE2 accepts: invalid escape sequence: \\1"),
        ("a(?=b)", r"RE2 accepts: invalid perl operator: \(\?="),
        ("(?<!a)b", "RE2 accepts: invalid"),
        ("a*+b", "RE2 accepts: bad repetition operator"),
        ("a{1001}", "RE2 accepts: .*repetition"),
        ("(((a{100}){100}){100})", "RE2 accepts: .*repetition"),
        (r"(\pL{500}){2}", "RE2 accepts: pattern too large"),
        ("(a?){500}#$", "compiled to 2005 instructions, expected at most 400"),
        ("a.{1,350}x#$", "compiled to .* instructions"),
    ],
)
def test_what_is_refused_and_why(pattern: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        LinearPattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)*b", "a.*a.*a.*a.*b", "(a*)*(a*)*b"])
def test_patterns_that_stall_re_take_time_in_proportion_to_the_text(pattern: str) -> None:
    compiled = LinearPattern(pattern)
    begun = time.process_time()
    assert not compiled.search("a" * 200_000)
    assert time.process_time() - begun < 5.0


def test_a_pattern_is_compiled_once() -> None:
    assert linear_pattern("lost") is linear_pattern("lost")
