"""Python's garbage collection between steps, after the same ones on all ranks (MegaScale 6.3).

A collection in the middle of a step makes all other ranks wait for one, at another moment on each. Planned,
they all pause at once, and best where they pause anyway: at a save.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Final, Self

EVERY_STEPS: Final = 100


class PlannedCollection:
    """No collection within the block but those after steps that all ranks agree on."""

    def __init__(self, step: int) -> None:
        """`step` is the one before the first; the same on all ranks, as are all later arguments."""
        self._collected = step

    def __enter__(self) -> Self:
        gc.collect()
        # What the engine is built of lives as long as the process: later collections need not look at it.
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
