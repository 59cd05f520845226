"""What docs/faults.md shows is valid, and what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from megascale.core.rules import ACTIONS
from megascale.job import from_mapping

TEXT = (Path(__file__).parents[3] / "docs" / "faults.md").read_text()
SNIPPETS: list[dict[str, Any]] = [
    YAML(typ="safe", pure=True).load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
]


def test_there_is_a_snippet_for_each_section() -> None:
    assert {name for snippet in SNIPPETS for name in snippet} == {"detection", "logRules", "recovery"}


def test_the_snippets_are_valid_together() -> None:
    """The one of `recovery` names a rule of the one of `logRules`."""
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    spec: dict[str, Any] = {"steps": 1, "runtime": {"command": {"args": ["true"]}}}
    for snippet in SNIPPETS:
        spec |= snippet
    from_mapping(head | {"spec": spec})


def test_every_action_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == set(ACTIONS)
