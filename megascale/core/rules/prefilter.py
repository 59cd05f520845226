"""Finds, in large amounts of text, the lines that log rules may act on, without looking at each line.

RE2 searches pieces of the text in two passes: the first finds the rules whose literals are all in the piece
(FilteredRE2), the second the lines that have a word of one of these rules. For all other lines
`LineClassifier.feed` would return a verdict without an action.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import re2

from megascale.core.rules.engine import LineClassifier, RuleSet
from megascale.core.rules.model import LogRule

_PIECE_BYTES: Final = 8 << 10
_KEPT: Final = 128
_MAX_MEM: Final = 32 << 20
# Lines that open a traceback; those that `clean` takes characters out of; and those with the letters that
# lower(), or a search that ignores case, takes for ASCII letters.
_ALWAYS: Final = 'Traceback|File "|[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]|(?-i:[\u0130\u0131\u017f\u212a])'
_TOKENS: Final = re.compile(r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|[\^$]", re.DOTALL)
_ASSERTIONS: Final = frozenset({"^", "$", "\\b", "\\B", "\\A", "\\z"})


class LinePrefilter:
    """Selects the lines of a text that have to be classified."""

    def __init__(self, rules: RuleSet) -> None:
        self._filter = re2.Filter()
        self._words: list[str] = []
        for rule in rules.rules:
            if rule.action != "none" and rule.scope != "consequence":
                self._add(rule)
        if self._words:
            self._filter.Compile()
        self._searches: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def _add(self, rule: LogRule) -> None:
        if rule.words:
            words = "|".join(_at_line_end(word) for word in rule.words)
            literals = rule.pattern.pattern if _has_literals(rule.pattern.pattern) else words
        else:
            literals, words = rule.pattern.pattern, f"(?-i:{_relaxed(rule.pattern.pattern)})"
        self._filter.Add(literals, _options())
        self._words.append(words)

    def lines(self, chunk: bytes, classifier: LineClassifier) -> Iterator[tuple[bytes, int]]:
        """Yield the lines of `chunk` that `classifier` has to be fed, each before the next is looked for.

        Inside a traceback that is every line. With each line comes how many bytes of the chunk are done; an
        empty line says that some more are, so that the caller can stop.
        """
        start = 0
        while start < len(chunk):
            end = chunk.find(b"\n", start + _PIECE_BYTES) + 1 or len(chunk)
            piece = _valid(chunk[start:end])
            for line, position in self._lines_of(piece, classifier):
                yield line, min(start + position, end)
            yield b"", end
            start = end

    def _lines_of(self, piece: bytes, classifier: LineClassifier) -> Iterator[tuple[bytes, int]]:
        search = self._search_for(
            tuple(sorted(self._filter.Match(piece, potential=True) or ())) if self._words else ()
        )
        position = 0
        while position < len(piece):
            if not classifier.in_context:
                found = search.search(piece, position)
                if found is None:
                    return
                position = piece.rfind(b"\n", position, found.start()) + 1 or position
            end = piece.find(b"\n", position)
            end = len(piece) if end < 0 else end
            line, position = piece[position:end], end + 1
            yield line, position

    def _search_for(self, rules: tuple[int, ...]) -> Any:  # noqa: ANN401 - RE2 has no types
        found = self._searches.get(rules)
        if found is None:
            text = "|".join((_ALWAYS, *(self._words[index] for index in rules)))
            found = self._searches[rules] = re2.compile(text.encode(), _options())
            if len(self._searches) > _KEPT:
                self._searches.popitem(last=False)
        self._searches.move_to_end(rules)
        return found


def _options() -> Any:  # noqa: ANN401 - as above
    options = re2.Options()
    options.case_sensitive, options.log_errors, options.max_mem = False, False, _MAX_MEM
    return options


def _at_line_end(word: str) -> str:
    """A word as RE2 finds it; one that ends with a blank is also found at the end of a line."""
    text: str = re2.escape(word.rstrip(" "))
    return f"{text}(?:[ \\r\\n]|$)" if word.strip(" ") and word.endswith(" ") else re2.escape(word)


def _has_literals(pattern: str) -> bool:
    """Whether RE2 takes the pattern, and text without certain literals cannot match it."""
    alone = re2.Filter()
    try:
        alone.Add(pattern, _options())
    except re2.error:
        return False
    alone.Compile()
    return not alone.Match(b"\n", potential=True)


def _relaxed(pattern: str) -> str:
    """The pattern without `^`, `$` and `\\b`, which are about the message and not about the whole line."""
    relaxed = _TOKENS.sub(lambda token: "" if token[0] in _ASSERTIONS else token[0], pattern)
    try:
        re2.compile(relaxed.encode("utf-8", "replace"), _options())
    except re2.error:
        return ""
    return relaxed


def _valid(piece: bytes) -> bytes:
    """The text with replacement characters for what is no UTF-8, as the classifier gets it."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return piece.decode(errors="replace").encode()
    return piece


@lru_cache(maxsize=4)
def prefilter_of(rules: RuleSet) -> LinePrefilter:
    """The prefilter of a rule set, kept for the next call; it takes about 0.1 s to make."""
    return LinePrefilter(rules)
