"""Text of jobs, nodes and files, made fit to be shown: what would steer a terminal becomes visible."""

from __future__ import annotations

import html
from typing import Any, Final

LINE_CHARACTERS: Final = 2000


def one_line(text: str, most: int = LINE_CHARACTERS) -> str:
    """`text` as one line of at most `most` characters.

    Control characters of both sets, line breaks, bidirectional overrides and other characters that are not
    printed are escaped as Python does, except tabs: `\\x1b`, `\\n`, `\\u202e`.
    """
    line = _escaped(text[: most + 1], "\t")
    return line if len(line) <= most else f"{line[: most - 3]}..."


def shown_text(text: str) -> str:
    """`text` escaped as in `one_line`, with its line breaks and of any length."""
    return _escaped(text, "\n\t")


def shown(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """A JSON document in which every text and name is one line."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {one_line(str(name)): shown(item) for name, item in value.items()}
    return value


def as_html(text: str) -> str:
    """`text` as in `one_line`, for the content or an attribute of an HTML element."""
    return html.escape(one_line(text))


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )
