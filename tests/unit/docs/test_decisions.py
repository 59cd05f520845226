"""Every decision has the same shape, and the index lists all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

FOLDER: Final = Path(__file__).parents[3] / "docs" / "decisions"
FILES: Final = sorted(FOLDER.glob("[0-9]*.md"))
_HEAD: Final = re.compile(
    r"# (?P<number>\d{4}): (?P<title>.+)\n\n"
    r"Date: (?P<date>\d{4}-\d\d-\d\d)\n"
    r"Status: (?P<status>accepted|superseded by \d{4})\n"
)
_ROW: Final = re.compile(r"\| \[(\d{4})\]\((\S+)\) \| (.+?) \| (\S+) \| ([^|]+?) \| ([^|]+?) \|")
_SECTIONS: Final = ("Context", "Decision", "Rejected")


@dataclass(frozen=True)
class Decision:
    """What the index repeats of a file."""

    number: str
    file: str
    title: str
    date: str
    status: str


def _read(path: Path) -> Decision:
    head = _HEAD.match(path.read_text())
    assert head, f"{path.name} does not begin with '# NNNN: title', 'Date: YYYY-MM-DD' and 'Status: ...'"
    return Decision(head["number"], path.name, head["title"], head["date"], head["status"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_decision_has_number_date_status_and_sections(path: Path) -> None:
    decision = _read(path)
    assert path.name.startswith(f"{decision.number}-")
    headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
    assert headings[: len(_SECTIONS)] == list(_SECTIONS)
    assert headings[len(_SECTIONS) :] in ([], ["Consequences"])


def test_the_index_lists_every_decision_in_order() -> None:
    rows = _ROW.findall((FOLDER / "README.md").read_text())
    listed = [Decision(number, file, title, date, status) for number, file, title, date, status, _ in rows]
    assert listed == [_read(path) for path in FILES]


def test_a_superseded_decision_names_one_that_exists() -> None:
    decisions = [_read(path) for path in FILES]
    numbers = {decision.number for decision in decisions}
    for decision in decisions:
        if decision.status != "accepted":
            assert decision.status.split()[-1] in numbers, decision.file
