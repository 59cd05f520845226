"""Finds the text files of a dataset: named files, folders, or Python's standard library."""

from __future__ import annotations

import fnmatch
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from megascale.errors import DataError

PYTHON_STDLIB: Final = "python-stdlib"
_NO_SOURCES: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})


def find_files(
    sources: Sequence[str],
    globs: Sequence[str] = ("*",),
    *,
    leave_out: Callable[[Path], bool] = lambda _: False,
) -> list[Path]:
    """Files of the sources in their order, sorted by path within a folder, without duplicates.

    Args:
        sources: files, folders (searched recursively, hidden entries are skipped) or "python-stdlib".
        globs: patterns of file names; files in folders must match one.
        leave_out: whether to skip a file that matches.

    Raises:
        DataError: a source does not exist, or nothing matches.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        files = [path for path in _of_source(source, globs) if not leave_out(path)]
        for path in files:
            found.setdefault(path.resolve(), path)
        if not files:
            raise DataError(f"{source}: holds no file that matches {' or '.join(globs)}")
    return list(found.values())


def _of_source(source: str, globs: Sequence[str]) -> list[Path]:
    if source == PYTHON_STDLIB:
        return [path for path in _walk(Path(sysconfig.get_paths()["stdlib"]), ("*.py",)) if _is_utf8(path)]
    path = Path(source)
    if path.is_dir():
        return list(_walk(path, globs))
    if path.is_file():
        return [path]
    problem = "is neither a file nor a folder" if path.exists() else "no such file or folder"
    raise DataError(f"{source}: {problem}; give files, folders, or {PYTHON_STDLIB}")


def _walk(top: Path, globs: Sequence[str]) -> Iterator[Path]:
    """Matching files below `top`, in an order that is the same on every machine."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, folders, names in os.walk(top, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NO_SOURCES)
        for name in sorted(names):
            path = Path(folder, name)
            if (
                not name.startswith(".")
                and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
                and path.is_file()
            ):
                yield path


def _is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8; some of Python's own test files are not, on purpose."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
