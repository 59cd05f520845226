"""`decide` answers questions: its functions neither change the state nor emit effects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import megascale.core.decide as package

MODULES = sorted(Path(package.__path__[0]).glob("*.py"))
MUTATORS = {
    "add", "append", "clear", "clear_deadline", "discard", "drop_pending", "emit", "extend", "insert", "mark",
    "pop", "popitem", "remove", "set_deadline", "setdefault", "update",
}  # fmt: skip


def root(node: ast.expr) -> str | None:
    """The variable at the start of a chain of attributes and items."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def state_names(function: ast.FunctionDef) -> set[str]:
    """Parameters, and variables that stand for a part of one."""
    names = {arg.arg for arg in [*function.args.args, *function.args.kwonlyargs]}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target, value in pairs(node.targets[0], node.value):
                if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and root(value) in names:
                    names.add(target.id)
    return names


def pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def changes(source: str) -> list[str]:
    """Each statement that changes something which was handed in, as `function: statement`."""
    found = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        names = state_names(function)
        for node in ast.walk(function):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign | ast.Delete):
                targets = list(node.targets)
            elif isinstance(node, ast.AugAssign | ast.AnnAssign):
                targets = [node.target]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                targets = [node.func] if node.func.attr in MUTATORS else []
            flat = [part for target in targets for part in getattr(target, "elts", [target])]
            if any(isinstance(t, ast.Attribute | ast.Subscript) and root(t) in names for t in flat):
                found.append(f"{function.name}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_queries_change_nothing(path: Path) -> None:
    assert changes(path.read_text()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "ctx.record.attempt += 1",
        "ctx.emit(Page, 'why')",
        "record = ctx.record\n    record.lost = {}",
        "record, live = ctx.record, ctx.live\n    live.nodes.pop('n')",
        "del ctx.record.blame['n']",
        "ctx.live.step, ctx.live.phase = 1, 2",
    ],
)
def test_each_way_to_change_the_state_is_seen(statement: str) -> None:
    assert len(changes(f"def query(ctx):\n    {statement}\n")) == 1
    assert changes("def query(ctx):\n    mine = {}\n    mine['n'] = ctx.now\n    mine.update(a=1)\n") == []
