"""Imports what ranks need in the process that they are forked from."""

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
    """Number of threads of this process, from /proc."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def import_all() -> None:
    """Import the engine and everything it uses.

    Raises:
        RuntimeError: an import started a thread; a fork would copy only the calling one.
    """
    with warnings.catch_warnings():
        # megatron-core warns of each optional package that is not installed.
        warnings.simplefilter("ignore")
        for name in _MODULES:
            importlib.import_module(name)
    import torch

    from megascale.model.megatron_compat import silence_warnings

    # Deprecations between torch and megatron-core would fill the ranks' logs; users cannot act on them.
    warnings.filterwarnings("ignore", module=r"(torch|megatron)\.")
    silence_warnings()
    torch.set_num_threads(1)
    # Frozen objects are skipped by the ranks' collectors, so that forked ranks keep sharing their pages.
    gc.collect()
    gc.freeze()
    if threads() != 1:
        raise RuntimeError(
            f"{threads()} threads after importing the engine, expected 1: set OMP_NUM_THREADS, "
            "OPENBLAS_NUM_THREADS and MKL_NUM_THREADS to 1 before starting this process"
        )
