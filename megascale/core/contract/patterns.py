"""Regular expressions that users write, matched in time linear in the text, as RE2 does.

Python's `re` backtracks: on some lines `(a+)+b` takes years, and an agent or a driver that matches it stops
answering. Here a pattern is parsed by `re`, turned into states, and all states are followed at once, so that
each character of the text costs at most one pass over the states. What cannot be matched that way
(backreferences, lookaround, possessive repeats, atomic and conditional groups) is refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

MAX_STATES: Final = 500
MAX_PATTERN: Final = 512
"""Characters of a pattern in a manifest."""
_MAX_CACHED: Final = 1000
_SHORTEST_WORD: Final = 3
# The parser of the standard library; it has no public name.
_PARSER: Final = importlib.import_module("re._parser")
_FLAGS: Final = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE
_REFUSED: Final = {
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a conditional group",
    "ASSERT": "a lookahead or lookbehind",
    "ASSERT_NOT": "a lookahead or lookbehind",
    "POSSESSIVE_REPEAT": "a possessive repeat",
    "ATOMIC_GROUP": "an atomic group",
}
_CATEGORIES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_WORD_BIT: Final = 1
_WORD: Final = re.compile(r"\w")


class PatternError(ValueError):
    """A pattern that is no regular expression, or one that is not taken."""


@dataclass(slots=True)
class _Node:
    """One state. `kind` is "char" (consumes a character of the class whose bit is `bit`), "at" (`where` must
    hold), "split" (both of `out` are followed) or "match"."""

    kind: str
    out: tuple[int, ...] = ()
    bit: int = 0
    where: str = ""


@dataclass(slots=True, eq=False)
class _State:
    """Nodes that are followed at once, what kind of character came before, and where characters lead.

    Attributes:
        before: None at the start of the text, else whether the last character was one of a word.
        after: what a character leads to by the classes it is in; None = the pattern is found.
    """

    nodes: frozenset[int]
    before: bool | None
    after: dict[int, _State | None] = field(default_factory=dict)


class LinearPattern:
    """A compiled pattern.

    Attributes:
        pattern: its text.
        words: lower-case literals of which one is in every text that the pattern is found in; () = unknown.

    Raises:
        PatternError: not a regular expression, not linear, or more than `MAX_STATES` states.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._nodes: list[_Node] = []
        self._classes: list[re.Pattern[str]] = []
        self._bits: dict[str, int] = {}
        self._known: dict[tuple[frozenset[int], bool | None], _State] = {}
        try:
            tree = _PARSER.parse(pattern)
            self.words = tuple(sorted(_words(tree)))
            self._start = self._sequence(tree, self._add(_Node("match")), _checked(tree.state.flags))
        except (re.error, OverflowError) as error:
            raise PatternError(f"is not a regular expression: {error}") from error
        except RecursionError as error:
            raise PatternError("has too many groups inside each other") from error

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in `text`; `^` and `$` are the start and end of `text`."""
        state = self._state(frozenset({self._start}), None)
        for char in text:
            bits = self._bits_of(char)
            try:
                after = state.after[bits]
            except KeyError:
                after = state.after[bits] = self._step(state, bits)
            if after is None:
                return True
            state = after
        return self._reached(state, None) is None

    def _bits_of(self, char: str) -> int:
        """The classes that `char` is in, as bits; the lowest bit is set for characters of a word."""
        known = self._bits.get(char)
        if known is None:
            if len(self._bits) >= _MAX_CACHED:
                self._bits = {}
            known = _WORD_BIT if _WORD.match(char) else 0
            for index, chars in enumerate(self._classes, start=1):
                if chars.fullmatch(char):
                    known |= 1 << index
            self._bits[char] = known
        return known

    def _state(self, nodes: frozenset[int], before: bool | None) -> _State:
        found = self._known.get((nodes, before))
        if found is None:
            if len(self._known) >= _MAX_CACHED:
                self._known = {}
            found = self._known[nodes, before] = _State(nodes, before)
        return found

    def _step(self, state: _State, bits: int) -> _State | None:
        is_word = bool(bits & _WORD_BIT)
        reached = self._reached(state, is_word)
        if reached is None:
            return None
        onward = {node.out[0] for node in reached if bits >> node.bit & 1}
        return self._state(frozenset(onward | {self._start}), is_word)

    def _reached(self, state: _State, after: bool | None) -> list[_Node] | None:
        """The nodes that wait for a character, None = the pattern is found.

        Args:
            after: None at the end of the text, else whether the next character is one of a word.
        """
        waiting: list[_Node] = []
        todo, seen = list(state.nodes), set(state.nodes)
        while todo:
            node = self._nodes[todo.pop()]
            if node.kind == "match":
                return None
            if node.kind == "char":
                waiting.append(node)
            elif node.kind == "split" or _holds(node.where, state.before, after):
                todo += [target for target in node.out if target not in seen]
                seen.update(node.out)
        return waiting

    def _add(self, node: _Node) -> int:
        if len(self._nodes) >= MAX_STATES:
            raise PatternError(f"takes more than {MAX_STATES} states: make its counted repeats shorter")
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _sequence(self, items: Iterable[tuple[Any, Any]], then: int, flags: re.RegexFlag) -> int:
        """Nodes for `items` one after the other, followed by the node `then`; returns the first."""
        for operation, argument in reversed(list(items)):
            then = self._item(str(operation), argument, then, flags)
        return then

    def _item(self, operation: str, argument: Any, then: int, flags: re.RegexFlag) -> int:  # noqa: ANN401
        if operation in _REFUSED:
            why = "it cannot be matched in time linear in the line; RE2 and Kubernetes refuse it too"
            raise PatternError(f"has {_REFUSED[operation]}: {why}")
        if operation == "BRANCH":
            return self._split(self._sequence(branch, then, flags) for branch in argument[1])
        if operation == "SUBPATTERN":
            _, added, removed, inside = argument
            return self._sequence(inside, then, _checked((flags | added) & ~removed))
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inside = argument
            return self._repeat(least, most, inside, then, flags)
        if operation == "AT":
            return self._add(_Node("at", (then,), where=str(argument)))
        return self._char(operation, argument, then, flags)

    def _split(self, ways: Iterable[int]) -> int:
        return self._add(_Node("split", tuple(ways)))

    def _repeat(
        self,
        least: int,
        most: Any,  # noqa: ANN401 - a number, or the parser's word for no limit
        inside: Iterable[tuple[Any, Any]],
        then: int,
        flags: re.RegexFlag,
    ) -> int:
        items = list(inside)
        if most is _PARSER.MAXREPEAT:
            loop = self._add(_Node("split"))
            self._nodes[loop].out = (self._sequence(items, loop, flags), then)
            then = loop
        else:
            end = then
            for _ in range(min(most, MAX_STATES + 1) - least):
                then = self._split((self._sequence(items, then, flags), end))
        for _ in range(min(least, MAX_STATES + 1)):
            then = self._sequence(items, then, flags)
        return then

    def _char(self, operation: str, argument: Any, then: int, flags: re.RegexFlag) -> int:  # noqa: ANN401
        text = _class_text(operation, argument)
        chars = re.compile(text, flags & (re.IGNORECASE | re.DOTALL))
        if chars not in self._classes:
            self._classes.append(chars)
        return self._add(_Node("char", (then,), bit=self._classes.index(chars) + 1))


@lru_cache(maxsize=64)
def linear_pattern(pattern: str) -> LinearPattern:
    """The compiled pattern, kept for the next time."""
    return LinearPattern(pattern)


def _checked(flags: int) -> re.RegexFlag:
    found = re.RegexFlag(flags)
    if found & ~_FLAGS:
        raise PatternError("sets a flag other than i, s and x")
    return found


def _holds(where: str, before: bool | None, after: bool | None) -> bool:
    if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return before is None
    if where in ("AT_END", "AT_END_STRING"):
        return after is None
    is_boundary = bool(before) != bool(after)
    return is_boundary if where == "AT_BOUNDARY" else not is_boundary


def _class_text(operation: str, argument: Any) -> str:  # noqa: ANN401
    """One character's class as a pattern for `re`."""
    if operation == "ANY":
        return "."
    if operation == "LITERAL":
        return re.escape(chr(argument))
    if operation == "NOT_LITERAL":
        return f"[^{re.escape(chr(argument))}]"
    if operation != "IN":
        raise PatternError(f"has {operation.lower()}, which is not known here")
    return f"[{''.join(_member_text(str(kind), value) for kind, value in argument)}]"


def _member_text(kind: str, value: Any) -> str:  # noqa: ANN401
    if kind == "NEGATE":
        return "^"
    if kind == "RANGE":
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    return _CATEGORIES[str(value)] if kind == "CATEGORY" else re.escape(chr(value))


def _words(tree: Iterable[tuple[Any, Any]]) -> set[str]:
    """The longest literal of a sequence, or one for each branch of a choice; empty = there is none."""
    items = [(str(operation), argument) for operation, argument in tree]
    if len(items) == 1 and items[0][0] == "BRANCH":
        found = [_words(branch) for branch in items[0][1][1]]
        return set().union(*found) if all(found) else set()
    runs = [""]
    for operation, argument in items:
        if operation == "LITERAL" and argument < 128:
            runs[-1] += chr(argument).lower()
        else:
            runs.append("")
    longest = max(runs, key=len)
    return {longest} if len(longest) >= _SHORTEST_WORD else set()
