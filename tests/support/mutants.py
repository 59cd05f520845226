"""Summarise what `make mutants` found: kill rate by package, then the survivors.

python tests/support/mutants.py [mutants]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

SURVIVED = 0
NOT_TESTED = 33
"""What mutmut notes for a mutant in a function that no selected test calls."""


def results(folder: Path) -> dict[str, int]:
    """Mutant -> what its tests ended with; those that were not run are left out."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        found |= {name: code for name, code in codes.items() if code is not None}
    return found


def main() -> int:
    found = results(Path(sys.argv[1] if len(sys.argv) > 1 else "mutants"))
    if not found:
        sys.stderr.write("no mutant was run: `make mutants` does that\n")
        return 2
    packages: dict[str, list[bool]] = defaultdict(list)
    for name, code in found.items():
        package = ".".join(name.split(".")[: 3 if name.startswith("megascale.core.") else 2])
        packages[package].append(code not in (SURVIVED, NOT_TESTED))
    for package, killed in sorted(packages.items()):
        print(f"{package:28} {sum(killed):6} of {len(killed):6} killed  {sum(killed) / len(killed):6.1%}")
    for name, code in found.items():
        if code in (SURVIVED, NOT_TESTED):
            print(f"survived: {name}{' (no test calls it)' if code == NOT_TESTED else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
