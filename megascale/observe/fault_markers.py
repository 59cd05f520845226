"""What an injected fault leaves behind when it fires: one file per fault in `runs/<job>/faults/`.

Read and written only where the manifest has `faults`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FaultMarker:
    """A fault that has fired: when (Unix seconds), of what kind, where, and at which step."""

    time: float
    kind: str
    rank: int
    node: str
    attempt: int
    step: int


def leave_marker(folder: Path, index: int, marker: FaultMarker) -> bool:
    """Write the marker of fault number `index`, durably; False when it has fired before."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / str(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as handle:
        handle.write(json.dumps(dataclasses.asdict(marker)))
        handle.flush()
        os.fsync(handle.fileno())
    return True


def read_markers(folder: Path) -> list[FaultMarker]:
    """The faults that have fired; one that is being written just now is left out."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            found.append(FaultMarker(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found
