"""Parses one YAML 1.2 or JSON document into plain data and keeps the line of every field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from megascale.errors import ManifestError, ManifestIssue
from megascale.job.scalars import RefusedScalarError, read_plain

Path = tuple[str | int, ...]

MAX_BYTES: Final = 1_000_000
_MAX_VALUES: Final = 10_000
_MAX_DEPTH: Final = 64
_TAG: Final = "tag:yaml.org,2002:"
_COLLECTION_TAGS: Final = frozenset({f"{_TAG}map", f"{_TAG}seq"})
_PLAIN_TAGS: Final = frozenset(
    f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)
_SYNTAX_HINTS: Final = {
    "'\\t'": "indent with spaces",
    "mapping values are not allowed here": 'check the indentation; put a text that contains ": " in quotes',
    "expected <block end>": "check the indentation of this line and the one above",
    "undefined alias": 'put a text that starts with "*" in quotes',
}


@dataclass(slots=True)
class Document:
    """What one file holds.

    Attributes:
        data: the parsed value.
        lines: 1-based line by path of every field and list item.
        issues: scalars and keys that were refused; `data` has a stand-in at their paths.
    """

    file: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    issues: dict[Path, ManifestIssue] = field(default_factory=dict)

    def line_of(self, path: Path) -> int | None:
        """Line of the field at `path`, or of the nearest section around it that is in the file."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)


def dotted(path: Path) -> str:
    """`spec.faults[0].rank`"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def parse(text: str, file: str, *, takes_text: Callable[[Path], bool | None] = lambda _: None) -> Document:
    """Read the one document in `text`.

    Args:
        text: the content.
        file: what errors call it.
        takes_text: whether the field at a path holds text (None: not known); shapes the hints.

    Raises:
        ManifestError: no document, several, or not YAML. Refused scalars are left in `Document.issues`.
    """
    if len(text) > MAX_BYTES:
        raise _unreadable(file, f"has {len(text)} characters, expected at most {MAX_BYTES}")
    nodes = _compose(text, file)
    if not nodes:
        raise _unreadable(file, "is empty, expected a TrainingJob", hint="see examples/quickstart.yaml")
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise _unreadable(
            file,
            f"holds {len(nodes)} documents, expected one",
            line,
            hint="put each job into a file of its own",
        )
    document = Document(file)
    document.data = _Reader(document, takes_text).read(nodes[0], ())
    return document


def _compose(text: str, file: str) -> list[Node]:
    """Node graphs of the documents that are not empty."""
    try:
        _bound_size(text, file)
        nodes = list(YAML(typ="safe", pure=True).compose_all(text))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _unreadable(file, f"character U+{error.character:04X} is not allowed in YAML", line) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or "not readable as YAML"
        hint = next((hint for words, hint in _SYNTAX_HINTS.items() if words in problem), None)
        begun = error.context_mark
        if begun and mark and begun.line < mark.line:
            problem = f"{problem} ({error.context} that starts in line {begun.line + 1})"
        at = mark.line + 1 if mark else None
        raise _unreadable(file, f"YAML syntax: {problem}", at, hint=hint) from error
    except YAMLError as error:
        raise _unreadable(file, f"YAML syntax: {error}") from error
    return [node for node in nodes if not _is_empty(node)]


def _bound_size(text: str, file: str) -> None:
    """Refuse documents nested too deeply, or with too many values. Parsing does not recurse; composing does,
    and would exhaust the stack."""
    depth = nodes = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        nodes += isinstance(event, NodeEvent | DocumentStartEvent)
        if nodes > 2 * _MAX_VALUES:  # names of fields are nodes too
            line = event.start_mark.line + 1
            raise _unreadable(file, f"holds more than {_MAX_VALUES} values", line)
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            line = event.start_mark.line + 1
            raise _unreadable(file, f"is nested more than {_MAX_DEPTH} levels deep", line)


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "" and node.style is None


def _unreadable(
    file: str, message: str, line: int | None = None, *, hint: str | None = None
) -> ManifestError:
    return ManifestError([ManifestIssue("file", message, file, line, hint)])


class _Reader:
    """Turns nodes into plain data. Aliases can multiply values, so the number of values is bounded; an alias
    that contains itself is refused."""

    def __init__(self, document: Document, takes_text: Callable[[Path], bool | None]) -> None:
        self._document = document
        self._takes_text = takes_text
        self._values_left = _MAX_VALUES
        self._open: set[int] = set()

    def read(self, node: Node, path: Path) -> Any:  # noqa: ANN401
        self._values_left -= 1
        line = node.start_mark.line + 1
        if id(node) in self._open:
            raise _unreadable(self._document.file, f"{dotted(path)} contains itself", line)
        if self._values_left < 0:
            raise _unreadable(self._document.file, f"holds more than {_MAX_VALUES} values", line)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTION_TAGS:
            self._refuse(node, path, f"tag {node.tag} is not allowed", "write the value without a tag")
        self._open.add(id(node))
        value = self._sequence(node, path) if isinstance(node, SequenceNode) else self._mapping(node, path)
        self._open.remove(id(node))
        return value

    def _scalar(self, node: ScalarNode, path: Path) -> Any:  # noqa: ANN401
        plain = node.style is None
        if node.tag == f"{_TAG}str" and not plain:
            return node.value
        if not plain or node.tag not in _PLAIN_TAGS:
            self._refuse(node, path, f"tag {node.tag} is not allowed", "write the value without a tag")
            return node.value
        try:
            return read_plain(node.value)
        except RefusedScalarError as error:
            self._refuse(node, path, str(error), self._way_out(node.value, path, error.advice))
            return node.value

    def _way_out(self, value: str, path: Path, advice: str | None) -> str | None:
        quoted, takes_text = f'"{value}" in quotes', self._takes_text(path)
        if takes_text is False:
            return advice
        return f"write {quoted}" if takes_text or advice is None else f"{advice}, or {quoted} for text"

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self._document.lines[here] = item.start_mark.line + 1
            values.append(self.read(item, here))
        return values

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in values:
                first = self._document.lines[here]
                self._refuse(key_node, here, f"is given twice, first in line {first}", "remove one of them")
                continue
            self._document.lines[here] = key_node.start_mark.line + 1
            values[key] = self.read(value_node, here)
        return values

    def _key(self, node: Node, path: Path) -> str | None:
        if not isinstance(node, ScalarNode):
            self._refuse(node, path, "has a list or mapping as a field name, expected text", None)
            return None
        if node.style is not None:
            return str(node.value)
        here, quoted = (*path, node.value), f'write "{node.value}" in quotes'
        try:
            key = read_plain(node.value)
        except RefusedScalarError as error:
            self._refuse(node, here, str(error), error.advice if node.value == "<<" else quoted)
            return None
        if not isinstance(key, str):
            self._refuse(node, here, f"field name {node.value} is not text", quoted)
            return None
        return key

    def _refuse(self, node: Node, path: Path, message: str, hint: str | None) -> None:
        issue = ManifestIssue(dotted(path), message, self._document.file, node.start_mark.line + 1, hint)
        self._document.issues.setdefault(path, issue)
