"""What pyproject.toml declares is what the code imports, and every pin fits a range."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {Requirement(text).name for text in PROJECT["dependencies"]}
EXTRAS = {
    extra: {Requirement(text).name for text in texts}
    for extra, texts in PROJECT["optional-dependencies"].items()
}
RUNTIME_EXTRAS = ("data", "kernels", "kubernetes")
"""`dev` and `debug` are tools: nothing of theirs is imported here."""
PARTS = {"pydantic-core": "pydantic", "annotated-types": "pydantic"}
"""Distributions that pydantic pins to one of its own versions; a range of ours could only contradict."""
PYTHONS = ("3.11", "3.12", "3.13")


def imported(folder: Path) -> Iterator[str]:
    """Top-level names of what the modules below `folder` import, wherever in the module that is."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def distributions(folder: Path) -> set[str]:
    """Third-party distributions that the modules below `folder` import."""
    ours = {"megascale", "megascale_operator", "__future__", *sys.stdlib_module_names}
    # `google` and `ruamel` are shared by several distributions; these two are the ones meant.
    known = packages_distributions() | {"google": ["protobuf"], "ruamel": ["ruamel.yaml"]}
    names = {canonicalize_name(known[name][0]) for name in set(imported(folder)) - ours}
    return {PARTS.get(name, name) for name in names}


def names(declared: set[str]) -> set[str]:
    return {canonicalize_name(name) for name in declared}


def test_the_library_imports_what_it_declares_and_nothing_else() -> None:
    allowed = names(BASE | EXTRAS["data"] | EXTRAS["kernels"])
    assert distributions(ROOT / "megascale") == allowed


def test_the_operator_imports_what_its_extra_declares() -> None:
    found = distributions(ROOT / "operator")
    assert names(EXTRAS["kubernetes"]) <= found
    assert found <= names(BASE | EXTRAS["kubernetes"])


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_pin_within_its_range(python: str) -> None:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line) if line and not line.startswith("#") else None
        if pin and (pin.marker is None or pin.marker.evaluate(environment)):
            assert pin.name not in pins, f"{pin.name} is pinned twice for Python {python}"
            (version,) = [one.version for one in pin.specifier]
            pins[canonicalize_name(pin.name)] = version
    declared = [
        *PROJECT["dependencies"],
        *(text for texts in PROJECT["optional-dependencies"].values() for text in texts),
    ]
    for requirement in map(Requirement, declared):
        if requirement.name != "megascale":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_extras_that_are_named_in_messages_and_docs_exist() -> None:
    texts = [path for folder in ("megascale", "operator", "docs") for path in (ROOT / folder).rglob("*.*")]
    named = {
        extra
        for path in texts
        if path.suffix in (".py", ".md")
        for group in re.findall(r"megascale\[([a-z,]+)\]", path.read_text())
        for extra in group.split(",")
    }
    assert named
    assert named <= EXTRAS.keys()
