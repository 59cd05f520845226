"""Files, functions, links and commands that the documentation names exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import typer
from megascale_operator.cluster.cli import app as cluster

from megascale.cli.main import app

ROOT: Final = Path(__file__).parents[3]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "tests" / "golden" / "README.md",
        *DOCS.glob("**/*.md"),
    ]
)
_TOPS: Final = "megascale|operator|tests|docs|deploy|examples|benchmarks"
_FILE: Final = re.compile(rf"`((?:(?:{_TOPS})/[\w./-]*|pyproject\.toml|Makefile)(?::[\w.]+)?)`")
_LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
_COMMAND: Final = re.compile(r"(?:^|`)megascale ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?=[ `]|$)", re.MULTILINE)
_MAKE: Final = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)


@functools.cache
def _names(path: Path) -> frozenset[str]:
    """Functions, classes, methods (`Class.method`), and variables of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            found |= {f"{node.name}.{name}" for inner in node.body for name in _targets(inner)}
        found |= set(_targets(node))
    return frozenset(found)


def _targets(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _problem(mention: str) -> str:
    """What is wrong with `file` or `file:name`, "" if it exists."""
    file, _, name = mention.partition(":")
    path = ROOT / file
    if not path.exists():
        return f"no file {file}"
    return f"no {name} in {file}" if name and name not in _names(path) else ""


def test_files_and_functions_that_pages_name_exist() -> None:
    """Decisions are left out: they describe the code as it was on their date."""
    problems = {
        f"{page.relative_to(ROOT)}: {problem}"
        for page in PAGES
        if page.parent.name != "decisions"
        for mention in _FILE.findall(page.read_text())
        if (problem := _problem(mention))
    }
    assert sorted(problems) == []


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in _LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_index_lists_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("*.md")} - {"README.md"}
    assert pages | {"decisions/README.md"} <= linked


def test_every_term_of_the_glossary_names_a_file_that_defines_it() -> None:
    entries = re.findall(
        r"^\*\*(.+?)\*\*: +(.+?)(?=\n\n|\Z)", (DOCS / "glossary.md").read_text(), re.M | re.S
    )
    assert len(entries) >= 60
    assert [term for term, text in entries if not _FILE.search(text)] == []
    terms = [term.lower() for term, _ in entries]
    assert terms == sorted(terms)


def test_the_question_table_is_long_enough_and_every_answer_names_a_file() -> None:
    text = (DOCS / "architecture.md").read_text().partition("| question | answer |")[2]
    rows = re.findall(r"^\| (?P<question>[^|]+\?) \| (?P<answer>.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 40
    assert [question for question, answer in rows if not _FILE.search(answer)] == []


def test_commands_that_pages_show_exist() -> None:
    shown = {command for page in PAGES for command in _COMMAND.findall(page.read_text())}
    assert len(shown) >= 20
    assert sorted(" ".join(command) for command in shown if not _exists(*command)) == []


def _exists(name: str, verb: str) -> bool:
    found = {**_commands(app), "cluster": typer.main.get_command(cluster)}
    command = found.get(name)
    verbs = getattr(command, "commands", None)
    return command is not None and (not verb or verbs is None or verb in verbs)


def _commands(program: typer.Typer) -> dict[str, object]:
    return dict(getattr(typer.main.get_command(program), "commands", {}))


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in _MAKE.findall(page.read_text())}
    assert len(named) >= 5
    assert named <= targets
