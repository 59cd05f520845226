"""Fields given on the command line, `spec.steps=500`, which count instead of the file's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from megascale.errors import InputError, ManifestIssue
from megascale.job.describe import takes_text
from megascale.job.document import Document, Path, dotted, parse
from megascale.job.lookup import look_up

SOURCE: Final = "--set"
_PART: Final = re.compile(r"([^.\[\]]+)|\[([0-9]+)\]")
_PATH: Final = re.compile(r"[^.\[\]=]+(\.[^.\[\]=]+|\[[0-9]+\])*")


def set_field(document: Document, change: str) -> None:
    """Put `path=value` into a manifest that was parsed; the value is YAML, or text where the field is text.

    Args:
        document: the manifest, which is checked afterwards; sections on the way are made.
        change: such as `spec.steps=500` or `spec.faults[0].rank=1`.

    Raises:
        InputError: not of this form, no such field (names the nearest), or a list is shorter.
    """
    name, equals, text = change.partition("=")
    if not equals or not _PATH.fullmatch(name):
        raise InputError(f"--set {change}: expected FIELD=VALUE, such as --set spec.steps=500")
    path = tuple(int(index) if index else word for word, index in _PART.findall(name))
    try:
        look_up(name)
    except InputError as error:
        raise InputError(f"--set {change}: {error}") from error
    for settled in [known for known in document.issues if known[: len(path)] == path]:
        del document.issues[settled]
    value = text if takes_text(path) else _parsed(document, path, text)
    document.data = _put(document.data, path, 0, value, change)


def said_by(issue: ManifestIssue, changes: Sequence[str]) -> ManifestIssue:
    """The issue; of a field that a change names, it says so instead of a line of the file."""
    inside = ("", ".", "[")
    for name in (change.partition("=")[0] for change in changes):
        if issue.path.startswith(name) and issue.path[len(name) : len(name) + 1] in inside:
            return replace(issue, file=SOURCE, line=None)
    return issue


def _parsed(document: Document, path: Path, text: str) -> Any:  # noqa: ANN401
    found = parse(text or "null", SOURCE, takes_text=lambda _: takes_text(path))
    for inner, issue in found.issues.items():
        where = (*path, *inner)
        document.issues[where] = replace(issue, path=dotted(where))
    return found.data


def _put(data: Any, path: Path, depth: int, value: Any, change: str) -> Any:  # noqa: ANN401
    """`data`, which lies at the first `depth` parts of the path, with the value in it."""
    if depth == len(path):
        return value
    part = path[depth]
    if isinstance(part, int):
        if not isinstance(data, list) or part >= len(data):
            length = len(data) if isinstance(data, list) else 0
            items = "1 item" if length == 1 else f"{length} items"
            raise InputError(f"--set {change}: {dotted(path[:depth])} has {items}, counted from 0")
        return [
            _put(item, path, depth + 1, value, change) if at == part else item for at, item in enumerate(data)
        ]
    if isinstance(data, list):
        raise InputError(
            f"--set {change}: {dotted(path[:depth])} is a list: name an item, as {dotted(path[:depth])}[0]"
        )
    fields = data if isinstance(data, dict) else {}
    return {**fields, part: _put(fields.get(part), path, depth + 1, value, change)}
