"""What a rank would otherwise import or build in its first step."""

from __future__ import annotations

import gc
import importlib
import warnings
from pathlib import Path
from typing import Final

_MODULES: Final = (
    "megascale.engine.rank",
    "megascale.engine.bridge",
    "torch.profiler._cupti_monitor",  # torch imports it in the first backward pass
)


def threads() -> int:
    """Threads of this process, from /proc."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def import_all() -> None:
    """Import the engine with everything it uses, and check that one thread is left."""
    with warnings.catch_warnings():
        # megatron-core warns of each optional package that is not installed.
        warnings.simplefilter("ignore")
        for name in _MODULES:
            importlib.import_module(name)
    import torch

    from megascale.model.megatron_compat import silence_warnings

    # What torch and megatron-core find deprecated in each other is no news for a rank's log.
    warnings.filterwarnings("ignore", module=r"(torch|megatron)\.")
    silence_warnings()
    torch.set_num_threads(1)
    # Ranks inherit these objects: their collector skips them and their pages stay shared.
    gc.collect()
    gc.freeze()
    if threads() != 1:
        raise RuntimeError(
            f"{threads()} threads after importing the engine, expected 1: set OMP_NUM_THREADS, "
            "OPENBLAS_NUM_THREADS and MKL_NUM_THREADS to 1 before starting this process"
        )
