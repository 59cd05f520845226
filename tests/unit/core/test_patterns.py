"""Users' patterns: found where `re` finds them, in time linear in the text."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.core.contract.patterns import LinearPattern, PatternError

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "1",
        "_",
        " ",
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"\W",
        "[a-c]",
        "[^a1]",
        r"[\d_]",
        r"\b",
        r"\.",
        "é",
    ]
)
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])


def quantified(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.sampled_from(["(?:{})", "({})", "(?i:{})", "(?s:{})"])
    grouped = st.builds(lambda shape, text, repeat: shape.format(text) + repeat, group, inner, REPEATS)
    choice = st.builds("{}|{}".format, inner, inner)
    return st.one_of(grouped, choice, st.lists(inner, min_size=1, max_size=3).map("".join))


SINGLE = st.builds(lambda atom, repeat: atom if atom == r"\b" else atom + repeat, ATOMS, REPEATS)
PATTERNS = st.builds(
    lambda start, body, end: start + body + end,
    st.sampled_from(["", "", "^", "(?i)", "(?is)"]),
    st.recursive(SINGLE, quantified, max_leaves=6),
    st.sampled_from(["", "", "$"]),
)
TEXTS = st.text(alphabet="abAB1_ .é-", max_size=12)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, TEXTS, TEXTS)
def test_it_finds_what_re_finds(pattern: str, first: str, second: str) -> None:
    linear = LinearPattern(pattern)
    for text in (first, second, first + second, f"{first}\n{second}."):
        found = re.search(pattern, text) is not None
        assert linear.search(text) == found, text
        if found and linear.words:
            assert any(word in text.lower() for word in linear.words)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("GPU fell off", ("gpu fell off",)),
        (r"ECC.*row \d+ of bank", (" of bank",)),
        ("lost|gone away", ("gone away", "lost")),
        ("lost|g.ne", ()),
        ("(?:lost)?", ()),
        ("a.b", ()),
    ],
)
def test_literals_that_a_text_must_hold(pattern: str, words: tuple[str, ...]) -> None:
    assert LinearPattern(pattern).words == words


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a regular expression: missing \\)"),
        (r"(a)\1", "has a backreference: .*linear in the line; RE2"),
        ("a(?=b)", "has a lookahead or lookbehind"),
        ("(?<!a)b", "has a lookahead or lookbehind"),
        ("a*+b", "has a possessive repeat"),
        ("(?>a)", "has an atomic group"),
        ("(?P<x>a)?(?(x)b|c)", "has a conditional group"),
        ("(?m)^a", "sets a flag other than i, s and x"),
        ("(?a:b)", "sets a flag"),
        ("a{501}", "takes more than 500 states"),
        ("(a{30}){30}", "takes more than 500 states"),
        ("(" * 5000 + ")" * 5000, "too many groups inside each other"),
    ],
)
def test_what_is_not_linear_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        LinearPattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*b", "a.*a.*a.*a.*b", "(a*)*(a*)*b", "((a{1,9}){1,9})*b$"]
)
def test_patterns_that_stall_re_take_time_in_proportion_to_the_text(pattern: str) -> None:
    linear = LinearPattern(pattern)
    begun = time.process_time()
    assert not linear.search("a" * 20_000)
    assert time.process_time() - begun < 5.0


def test_more_states_than_are_remembered_change_nothing() -> None:
    linear = LinearPattern("[ab]*a[ab]{11}c")
    texts = [f"{number:020b}".translate(str.maketrans("01", "ab")) for number in range(0, 2**20, 997)]
    for text in texts:
        assert linear.search(f"{text}c") == (text[-12] == "a")
