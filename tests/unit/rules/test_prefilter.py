"""The prefilter leaves out only lines that have no action."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from megascale.core.contract.policy import LogRuleSpec
from megascale.core.rules import BUILTIN, LineClassifier, RuleSet, Verdict, prefilter_of, rule_set

CORPUS = Path(__file__).parent / "corpus"
TRACEBACK = b"""\
Traceback (most recent call last):
  File "train.py", line 7, in <module>
    step(batch)
ValueError: the batch is empty
all is well
"""
USER = rule_set(
    tuple(
        LogRuleSpec(f"u{number}", pattern, None, None, "host", "alert")
        for number, pattern in enumerate(
            (
                r"^fan \d+ stopped$",
                r"\bPump\b[^x]+off",
                r"(?i)valve (?:open|stuck)",
                r"[\]^$]end",
                r"a.b",
                r"\Q^$\E!",
            )
        )
    )
)


def _acts(verdict: Verdict) -> bool:
    return verdict.rule is not None and verdict.action != "none" and verdict.scope != "consequence"


def _one_by_one(text: bytes, rules: RuleSet) -> list[Verdict]:
    classifier = LineClassifier(rules)
    verdicts = [classifier.feed(line.decode(errors="replace")) for line in text.split(b"\n")]
    return [verdict for verdict in verdicts if _acts(verdict)]


def _filtered(text: bytes, rules: RuleSet) -> tuple[list[Verdict], int]:
    """The verdicts with an action, and how many lines were classified for them."""
    classifier, verdicts, count, done = LineClassifier(rules), [], 0, 0
    for line, now_done in prefilter_of(rules).lines(text, classifier):
        assert done <= now_done <= len(text)
        done = now_done
        if line:
            count += 1
            verdicts.append(classifier.feed(line.decode(errors="replace")))
    assert done == len(text)
    return [verdict for verdict in verdicts if _acts(verdict)], count


def _corpus() -> list[bytes]:
    return [line for path in sorted(CORPUS.glob("*")) for line in path.read_bytes().split(b"\n")]


@pytest.mark.parametrize("rules", [rule_set(), USER], ids=["built-in", "with-those-of-a-job"])
def test_no_line_with_an_action_is_left_out(rules: RuleSet) -> None:
    lines = [*_corpus(), *(rule.example.encode() for rule in BUILTIN), *TRACEBACK.split(b"\n")]
    lines += [b"nothing of note", b"fan 3 stopped", b"the Pump is off", b"x VALVE stuck", b"^end", b"a\xffb"]
    lines += [
        b"^$!",
        b"\x1b[31mfan 3 stop\x1b[0mped",
        b"10%\rfan 3 stopped",
        b"loss is inf\r",
        b"fo\x0bund: loss is nan",
        "a\u212ab".encode(),
    ]
    for seed in range(1):
        random.Random(seed).shuffle(lines)
        text = b"\n".join(lines)
        expected = _one_by_one(text, rules)
        assert len(expected) > 400
        assert _filtered(text, rules)[0] == expected


def test_every_line_of_its_own_is_found() -> None:
    """Alone in a piece a line gets no help from the words of its neighbours."""
    for rule in BUILTIN:
        for text in (rule.example, rule.example.upper(), f"{rule.example}\u00e9"):
            assert _filtered(text.encode(), rule_set())[0] == _one_by_one(text.encode(), rule_set())


def test_ordinary_lines_are_not_classified() -> None:
    rng = random.Random(0)
    text = b"".join(
        f"12:00:00 INFO trainer: step {n} loss {rng.random():.4f} tokens/s {rng.random()}\n".encode()
        for n in range(2000)
    )
    assert _filtered(text, rule_set()) == ([], 0)
    # of the piece with the traceback the lines with a word of a rule that may match there
    assert 4 <= _filtered(text + TRACEBACK + text, rule_set())[1] < 200


def test_a_user_pattern_about_the_start_of_the_message_is_found_behind_a_prefix() -> None:
    (verdict,) = _filtered(b"fine\n2026-11-30 17:20:01,123 ERROR fan 3 stopped\nfine\n", USER)[0]
    assert verdict.rule == "u0"
