"""Runs Python's garbage collection between steps, after the same steps on all ranks (MegaScale 6.3).

A collection on one rank makes all others wait, and each rank would collect at another moment. Here all ranks
collect at the same time, after a save if possible, where they wait for each other anyway.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Final, Self

EVERY_STEPS: Final = 100


class PlannedCollection:
    """Disables automatic collection within the block; `after` collects."""

    def __init__(self, step: int) -> None:
        """`step` is the last completed one. All ranks pass the same arguments, here and to `after`."""
        self._collected = step

    def __enter__(self) -> Self:
        gc.collect()
        # Model and optimizer live as long as the process: frozen, later collections skip them.
        gc.freeze()
        gc.disable()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        gc.enable()

    def after(self, step: int, *, saved: bool) -> None:
        """Collect if the ranks have just saved, or have not collected for `EVERY_STEPS` steps."""
        if saved or step - self._collected >= EVERY_STEPS:
            gc.collect()
            self._collected = step
