"""What docs/faults.md shows is valid, and what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from megascale.core.rules import ACTIONS
from megascale.job import from_mapping

TEXT = (Path(__file__).parents[3] / "docs" / "faults.md").read_text()
SNIPPETS: list[dict[str, Any]] = [
    YAML(typ="safe", pure=True).load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
]


def test_there_is_a_snippet_for_each_section() -> None:
    assert {name for snippet in SNIPPETS for name in snippet} == {"detection", "logRules", "recovery"}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: next(iter(snippet)))
def test_the_snippets_are_valid(snippet: dict[str, Any]) -> None:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    spec = {"steps": 1, "runtime": {"command": {"args": ["true"]}}}
    from_mapping(head | {"spec": spec | snippet})


def test_every_action_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(ACTIONS)
