"""Type check and worst-case cost of a CEL rule; an API server refuses a CRD that fails either.

Costs follow cel-go's estimate with the API server's sizes: a field or call is 1, a list 10, a map 30, a text
a tenth of the bytes that are read, a comprehension its iterations times its body. Where the server counts
less (branches, lookups) this takes the larger figure, so a rule that passes here also passes there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from .syntax import Term, parse
from .violation import Json

MAX_REQUEST: Final = 3 * 1024 * 1024
EXPRESSION_LIMIT: Final = 10_000_000
CRD_LIMIT: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Type:
    """A CEL type: int, double, bool, string, list, map, object, dyn; `size` is in bytes, or in entries."""

    name: str
    size: int = 1
    entry: Type | None = None
    fields: Mapping[str, Type] | None = None

    def __str__(self) -> str:
        return f"{self.name}({self.entry})" if self.entry else self.name


INT, DOUBLE, BOOL = Type("int"), Type("double"), Type("bool")
_SCALARS: Final = {"integer": INT, "number": DOUBLE, "boolean": BOOL, "dyn": Type("dyn", MAX_REQUEST)}
_PRICES: Final = {"name": 1, "select": 1, "index": 1, "call": 1, "list": 10, "map": 30}
_COMPREHENSIONS: Final = frozenset({"all", "exists", "exists_one"})
_ARITHMETIC: Final = frozenset({"+", "-", "*", "/", "%"})
_ORDER: Final = frozenset({"<", "<=", ">", ">="})


_FUNCTIONS: Final = {
    ("!", "bool"): BOOL,
    ("-", "int"): INT,
    ("-", "double"): DOUBLE,
    ("&&", "bool", "bool"): BOOL,
    ("||", "bool", "bool"): BOOL,
    ("size", "list"): INT,
    ("size", "map"): INT,
    ("size", "string"): INT,
    ("startsWith", "string", "string"): BOOL,
    ("endsWith", "string", "string"): BOOL,
    ("contains", "string", "string"): BOOL,
    ("matches", "string", "string"): BOOL,
}
"""Result types of functions, by name and operand types."""


class RuleError(ValueError):
    """The API server would refuse the rule."""


def declared(schema: Json) -> Type:
    """Return the CEL type of a part of the schema."""
    kind = "dyn" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "object")
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind == "string":
        return Type("string", _text_size(schema))
    if kind == "array":
        return Type("list", schema.get("maxItems", MAX_REQUEST), declared(schema["items"]))
    if isinstance(schema.get("additionalProperties"), dict):
        return Type("map", schema.get("maxProperties", MAX_REQUEST), declared(schema["additionalProperties"]))
    return Type(
        "object", fields={name: declared(inner) for name, inner in schema.get("properties", {}).items()}
    )


def _text_size(schema: Json) -> int:
    """Return the maximal size in bytes; maxLength counts characters of up to four bytes each."""
    if "enum" in schema:
        return max(map(len, schema["enum"]))
    return int(4 * schema["maxLength"]) if "maxLength" in schema else MAX_REQUEST


def check(rule: str, here: Type) -> int:
    """Return the worst-case cost of `rule` for a value of type `here`.

    Raises:
        RuleError: the rule does not compile, or is not of type bool.
    """
    checker = _Checker({"self": here, "oldSelf": here})
    kind = checker.type_of(parse(rule))
    if kind.name != "bool":
        raise RuleError(f"{rule}: gives {kind}, expected bool")
    return checker.cost


class _Checker:
    def __init__(self, names: dict[str, Type]) -> None:
        self._names = names
        self.cost = 0

    def type_of(self, term: Term) -> Type:
        """Return the type of a term, and add its cost to the total."""
        if term.kind == "literal":
            return _literal(term.word)
        kinds = {
            "name": self._name,
            "select": self._field,
            "index": self._indexed,
            "list": self._list,
            "map": self._map,
        }
        self.cost += _PRICES[term.kind]
        return kinds.get(term.kind, self._call)(term)

    def _list(self, term: Term) -> Type:
        return Type("list", len(term.parts), self._common(term.parts))

    def _map(self, term: Term) -> Type:
        self._common(term.parts[::2])
        return Type("map", len(term.parts) // 2, self._common(term.parts[1::2]))

    def _name(self, term: Term) -> Type:
        if term.word not in self._names:
            raise RuleError(f"undeclared reference to '{term.word}'")
        return self._names[term.word]

    def _field(self, term: Term) -> Type:
        at = self.type_of(term.parts[0])
        if at.fields is None or term.word not in at.fields:
            raise RuleError(f"undefined field '{term.word}'")
        return at.fields[term.word]

    def _indexed(self, term: Term) -> Type:
        at, index = map(self.type_of, term.parts)
        wanted = {"list": "int", "map": "string"}.get(at.name)
        if at.entry is None or index.name != wanted:
            raise RuleError(f"no matching overload for '_[_]' applied to ({at}, {index})")
        return at.entry

    def _common(self, terms: tuple[Term, ...]) -> Type:
        kinds = [self.type_of(term) for term in terms]
        names = {kind.name for kind in kinds}
        if len(names) != 1:
            raise RuleError(f"entries of different types: {', '.join(sorted(names))}")
        return Type(kinds[0].name, max(kind.size for kind in kinds), kinds[0].entry)

    def _call(self, term: Term) -> Type:
        if term.word == "has":
            if term.parts[0].kind != "select":
                raise RuleError("has() takes a field")
            self.type_of(term.parts[0])
            return BOOL
        if term.is_method and term.word in _COMPREHENSIONS:
            return self._comprehension(term)
        kinds = [self.type_of(part) for part in term.parts]
        found = self._function(term.word, kinds)
        if found is None:
            applied = ", ".join(map(str, kinds))
            raise RuleError(f"no matching overload for '{term.word}' applied to ({applied})")
        return found

    def _comprehension(self, term: Term) -> Type:
        over, variable, body = term.parts
        source = self.type_of(over)
        if source.entry is None or variable.kind != "name":
            raise RuleError(f"{term.word}() takes a list or map and a name, got {source}")
        item = source.entry if source.name == "list" else Type("string", MAX_REQUEST)
        inner = _Checker(self._names | {variable.word: item})
        if inner.type_of(body).name != "bool":
            raise RuleError(f"{term.word}() needs a bool")
        self.cost += source.size * (inner.cost + 10)
        return BOOL

    def _function(self, word: str, kinds: list[Type]) -> Type | None:
        names = [kind.name for kind in kinds]
        if word == "?:":
            return replace(kinds[1], size=max(kinds[1].size, kinds[2].size)) if names[1] == names[2] else None
        if word == "in":
            return self._membership(*kinds)
        if word in _READERS and len(kinds) == 2:
            self.cost += _READERS[word](kinds[0].size, kinds[1].size)
        found = _FUNCTIONS.get((word, *names))
        return found or (self._binary(word, *kinds) if len(kinds) == 2 else None)

    def _membership(self, item: Type, among: Type) -> Type | None:
        wanted = "string" if among.name == "map" else among.entry and among.entry.name
        self.cost += among.size if among.name == "list" else 1
        return BOOL if item.name == wanted else None

    def _binary(self, word: str, first: Type, second: Type) -> Type | None:
        if first.name != second.name and "dyn" not in {first.name, second.name}:
            return None
        self.cost += _tenth(min(first.size, second.size))
        ordered = word in _ORDER and first.name in {"int", "double", "string"}
        if ordered or word in {"==", "!="}:
            return BOOL
        computed = word in _ARITHMETIC and first.name in ({"int"} if word == "%" else {"int", "double"})
        return first if computed else None


def _literal(word: str) -> Type:
    if word in {"true", "false"}:
        return BOOL
    if word[0] in "'\"":
        return Type("string", len(word))
    return DOUBLE if any(mark in word for mark in ".eE") else INT


def _tenth(size: int) -> int:
    return -(-size // 10)


_READERS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "startsWith": lambda _, prefix: _tenth(prefix),
    "endsWith": lambda _, suffix: _tenth(suffix),
    "contains": lambda text, part: _tenth(text) * _tenth(part),
    "matches": lambda text, pattern: _tenth(text + 1) * max(1, pattern // 4),
}
"""Costs of string functions, by the sizes of their operands."""
