"""Parses CEL source to a small tree with cel-python's grammar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import celpy

OPERATORS: Final = {
    "relation_lt": "<", "relation_le": "<=", "relation_gt": ">", "relation_ge": ">=", "relation_eq": "==",
    "relation_ne": "!=", "relation_in": "in", "addition_add": "+", "addition_sub": "-",
    "multiplication_mul": "*", "multiplication_div": "/", "multiplication_mod": "%",
}  # fmt: skip

_PLAIN: Final = {"expr": "?:", "conditionalor": "||", "conditionaland": "&&"}


@dataclass(frozen=True, slots=True)
class Term:
    """One term.

    Attributes:
        kind: literal, name, select, index, list, map, call.
        word: the literal's text, the name, the field, or the function or operator.
        parts: operands; a method's target comes first.
        is_method: whether a call has a target.
    """

    kind: str
    word: str
    parts: tuple[Term, ...] = ()
    is_method: bool = False


@cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


def parse(source: str) -> Term:
    """Return the tree of an expression.

    Raises:
        ValueError: it is not valid CEL.
    """
    try:
        tree = _environment().compile(source)
    except celpy.CELParseError as error:
        raise ValueError(f"{source}: {error}") from error
    return _term(tree)


def _term(tree: Any) -> Term:
    rule, children = tree.data, tree.children
    if rule in _SPECIAL:
        return _SPECIAL[rule](children)
    if len(children) == 1:
        return _term(children[0])
    if rule in _PLAIN:
        return Term("call", _PLAIN[rule], tuple(map(_term, children)))
    operator, *operands = children
    if rule == "unary":
        return Term("call", "!" if operator.data == "unary_not" else "-", (_term(operands[0]),))
    return Term("call", OPERATORS[operator.data], (_term(operator.children[0]), _term(operands[0])))


def _arguments(children: list[Any]) -> tuple[Term, ...]:
    return tuple(map(_term, children[0].children)) if children else ()


def _list(children: list[Any]) -> Term:
    return Term("list", "", _arguments(children))


def _map(children: list[Any]) -> Term:
    return Term("map", "", _arguments(children))


_SPECIAL: Final = {
    "literal": lambda children: Term("literal", str(children[0])),
    "ident": lambda children: Term("name", str(children[0])),
    "ident_arg": lambda children: Term("call", str(children[0]), _arguments(children[1:])),
    "member_dot": lambda children: Term("select", str(children[1]), (_term(children[0]),)),
    "member_dot_arg": lambda children: Term(
        "call", str(children[1]), (_term(children[0]), *_arguments(children[2:])), is_method=True
    ),
    "member_index": lambda children: Term("index", "", tuple(map(_term, children))),
    "list_lit": _list,
    "map_lit": _map,
}


def names_in(term: Term) -> set[str]:
    """Return all names that the term uses."""
    found = {term.word} if term.kind == "name" else set()
    return found.union(*map(names_in, term.parts))
