"""Lines of many programs and accelerators, with every acceptable answer (tests/data/README.md).

First readings of the three rounds of heldout.jsonl, before anything that they showed was mended, and what the
rules said that the project had before:

| round | lines | class | action | faults missed | benign that trigger | before: class, action, missed |
| 1 | 145 | 0.81 | 0.85 | 11 of 86 | 1 of 59 | 0.61, 0.64, 51 |
| 2 | 88 | 0.85 | 0.86 | 6 of 53 | 3 of 35 | 0.65, 0.67, 28 |
| 3 | 32 | 0.66 | 0.84 | 4 of 18 | 0 of 14 | 0.50, 0.69, 11 |

So a line that nobody looked at is classified right less often than these tests assert.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megascale.core.rules import BUILTIN, RuleSet, classify_text

RULES = RuleSet(BUILTIN)
FOLDER = Path(__file__).parents[2] / "data" / "log_lines"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["dev.jsonl", "heldout.jsonl"])
def test_rates(name: str) -> None:
    samples = read(name)
    verdicts = [(sample, classify_text(sample["line"], RULES)) for sample in samples]
    wrong_class = [s["line"] for s, v in verdicts if v.category not in s["classes"]]
    wrong_action = [s["line"] for s, v in verdicts if v.action not in s["actions"]]
    benign = [(s, v) for s, v in verdicts if s["classes"] == ["benign"]]
    missed = [s["line"] for s, v in verdicts if v.category == "benign" and "benign" not in s["classes"]]
    triggers = [s["line"] for s, v in benign if v.action != "none"]
    evicted = [line for line in wrong_action if classify_text(line, RULES).action == "replace_node"]
    faults = len(samples) - len(benign)
    print(
        f"{name}: {len(samples)} lines, class {1 - len(wrong_class) / len(samples):.3f}, action "
        f"{1 - len(wrong_action) / len(samples):.3f}, missed {len(missed)}/{faults}, "
        f"triggers {len(triggers)}/{len(benign)}, wrong evictions {len(evicted)}"
    )
    assert len(wrong_class) <= 0.05 * len(samples), wrong_class
    assert len(wrong_action) <= 0.05 * len(samples), wrong_action
    assert len(missed) <= 0.03 * faults, missed
    assert len(triggers) <= 0.01 * len(benign), triggers
    assert not evicted


def test_the_table_is_wide() -> None:
    samples = [*read("dev.jsonl"), *read("heldout.jsonl")]
    benign = sum(sample["classes"] == ["benign"] for sample in samples)
    assert len(samples) - benign >= 300
    assert benign >= 150
    assert len({sample["family"] for sample in samples}) >= 20
    assert all(sample["source"] for sample in samples)


@pytest.mark.parametrize(
    "line",
    [
        "2025-05-05 11:00:01,123 - trainer - ERROR - the frobnicator is not aligned",
        "E0312 12:00:00.123456    77 watch.go:12] the frobnicator is not aligned",
        "FATAL: the frobnicator is not aligned",
        "the frobnicator could not be aligned",
        "Fehler: Ausrichtung fehlgeschlagen",
    ],
)
def test_what_looks_like_an_error_and_matches_nothing_is_unknown(line: str) -> None:
    verdict = classify_text(line, RULES)
    assert (verdict.category, verdict.action) == ("unknown", "none")
    assert (verdict.rule, verdict.line) == ("unknown-error", line)


def test_any_rule_outweighs_an_unknown_error() -> None:
    record = "ERROR: the frobnicator is not aligned\nKeyError: 'labels'"
    assert classify_text(record, RULES).rule == "user-exception"
    assert classify_text("all is well\nERROR: the frobnicator is not aligned", RULES).category == "unknown"


def test_an_exception_of_unknown_kind_ends_a_traceback_and_is_not_unknown() -> None:
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\nmylib.Halted: could not be aligned'
    )
    assert classify_text(text, RULES).rule == "python-exception"


def test_a_message_behind_a_progress_bar_has_its_level() -> None:
    bar = "Epoch 3:  12%|#   | 120/1000 [01:02<07:35,  1.93it/s]"
    warned = (
        f"{bar}[W socket.cpp:697] [c10d] The client socket has failed to connect to [n1]:29500 (errno: 111)"
    )
    failed = f"{bar}[E ProcessGroupNCCL.cpp:458] [Rank 0] Watchdog caught collective operation timeout"
    assert classify_text(warned, RULES).action == "none"
    assert classify_text(failed, RULES).rule == "nccl-timeout"


def test_levels_bound_rules_on_both_sides() -> None:
    told = "see https://x.example for further information on the lost rail"
    assert classify_text(f"WARNING: {told}", RULES).rule == "documentation"
    assert classify_text(f"ERROR: {told}", RULES).category == "unknown"


def test_trouble_of_a_daemon_is_classified_by_its_name() -> None:
    line = "Mar  1 10:00:00 n-4 {}[811]: error: the request was refused"
    assert classify_text(line.format("mmfsd"), RULES).rule == "program-storage"
    assert classify_text(line.format("opensm"), RULES).rule == "program-network"
