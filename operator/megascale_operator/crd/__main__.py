"""`python -m megascale_operator.crd`: write the CRDs, or check that the committed ones are current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megascale_operator.crd.generate import FOLDER, rendered


def main(arguments: list[str] | None = None) -> int:
    """Write or check the CRD files; returns 1 if `--check` found a file that is not current, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m megascale_operator.crd",
        description="Generate operator/crds/*.yaml from the pydantic models.",
        epilog="Example: python -m megascale_operator.crd --check",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not current")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are")
    options = parser.parse_args(arguments)
    stale = [name for name, content in rendered().items() if _content(options.folder / name) != content]
    if options.check:
        for name in stale:
            sys.stderr.write(
                f"{options.folder / name} is not current: run python -m megascale_operator.crd\n"
            )
        return 1 if stale else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (options.folder / name).write_text(rendered()[name])
        sys.stdout.write(f"{options.folder / name}\n")
    return 0


def _content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
