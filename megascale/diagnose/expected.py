"""What to hold a node's figures against: a table of hardware, or a baseline recorded on the node."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megascale.diagnose.checks import Check, Floor
from megascale.errors import InputError
from megascale.hardware import rated

_FLOORS: Final = {"gemm": 0.6, "memory": 0.7, "host-to-device": 0.5, "device-to-host": 0.5, "all-to-all": 0.4}
"""Share of the rated figure that a healthy part reaches in our checks, low on purpose."""
_RATED_AS: Final = {
    "gemm": "gemm",
    "memory": "memory",
    "host-to-device": "link",
    "device-to-host": "link",
    "all-to-all": "fabric",
}
_BASELINE_SHARE: Final = 0.5
"""Share of a recorded figure that counts as healthy: a CPU shared with others varies that much."""


def table_floors(hardware: str) -> dict[str, Floor]:
    """Least figures by check for an accelerator, by CUDA's name for it; empty if it is not in the table."""
    rates = rated(hardware)
    return {
        check: Floor(_FLOORS[check] * rates[kind], "table")
        for check, kind in _RATED_AS.items()
        if kind in rates
    }


@dataclass(frozen=True, slots=True)
class Baseline:
    """Figures that `write_baseline` recorded.

    Attributes:
        path: where they were read from.
        floors: least figures by check.
    """

    path: Path
    hardware: str
    floors: dict[str, Floor]

    def floors_on(self, hardware: str) -> dict[str, Floor]:
        """The floors for a node of this hardware.

        Raises:
            InputError: they were recorded on other hardware.
        """
        if self.hardware != hardware:
            raise InputError(
                f"--baseline {self.path}: recorded on {self.hardware!r}, this node is {hardware!r}; "
                "record it here"
            )
        return self.floors


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        recorded, figures = str(document["hardware"]), document["figures"]
        floors = {str(k): Floor(_BASELINE_SHARE * float(v), "baseline") for k, v in figures.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--baseline {path}: not a baseline ({error}); make one with --record-baseline"
        ) from error
    return Baseline(path, recorded, floors)


def write_baseline(path: Path, hardware: str, checks: Iterable[Check]) -> None:
    """Record this node's figures as what to expect of it from now on.

    Raises:
        InputError: the file cannot be written.
    """
    figures = {check.name: check.value for check in checks if check.value is not None}
    try:
        path.write_text(
            json.dumps({"hardware": hardware, "figures": figures}, indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"--record-baseline {path}: {error.strerror}") from error
