"""Regular expressions that users write, matched by RE2 in time linear in the text.

Python's `re` backtracks: on some lines `(a+)+b` takes years, and an agent or a driver that matches it stops
answering. RE2 has no such patterns: it refuses backreferences and lookaround. Its syntax is
https://github.com/google/re2/wiki/Syntax; `\\d`, `\\w`, `\\s` and `\\b` are about ASCII characters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import re2

MAX_PATTERN: Final = 512
"""Characters of a pattern in a manifest."""
_MAX_COMPILED_BYTES: Final = 1 << 20
_MAX_INSTRUCTIONS: Final = 400
"""Where the automaton of a pattern grows too large, RE2 takes time for each instruction and character."""


class PatternError(ValueError):
    """A pattern that RE2 refuses; the message says why."""


class LinearPattern:
    """A compiled pattern; `pattern` is its text.

    Raises:
        PatternError: RE2 refuses it, or it is compiled to more than 400 instructions.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MAX_COMPILED_BYTES
        try:
            self._compiled = re2.compile(_encoded(pattern), options)
        except re2.error as error:
            raise PatternError(f"is not a regular expression that RE2 accepts: {_text(error)}") from error
        size = self._compiled.programsize
        if size > _MAX_INSTRUCTIONS:
            raise PatternError(
                f"is compiled to {size} instructions, expected at most {_MAX_INSTRUCTIONS}: "
                "make its counted repeats shorter"
            )

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in `text`; `^` and `$` are the start and end of `text`."""
        return self._compiled.search(_encoded(text)) is not None


@lru_cache(maxsize=64)
def linear_pattern(pattern: str) -> LinearPattern:
    """The compiled pattern, kept for the next call."""
    return LinearPattern(pattern)


def _encoded(text: str) -> bytes:
    # A log line or a file name may hold lone surrogates, which are no UTF-8.
    return text.encode("utf-8", "replace")


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
