"""MegaScale: reliable training of large language models on thousands of GPUs.

What a training script or a program around jobs needs:

    from megascale import monitor                     progress of any script: one line per step
    from megascale.checkpoint import script           checkpoints of any script in two lines
    from megascale import checkpoint                  save, restore and verify checkpoints of any layout
    from megascale import load_job                    a TrainingJob manifest, checked
    megascale.__version__

Names are imported when they are first used: `import megascale` costs nothing. Only `script` imports torch at
once, the others when a tensor is saved or restored, or never. Errors that a user may see are in
`megascale.errors`. Programs around MegaScale, such as its Kubernetes operator, use `megascale.core.api`,
`driver.api`, `driver.policy`, `job.api`, `model.api` and `cli.api`; what these do not name may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from megascale import checkpoint, monitor
    from megascale.job import load_job

__all__ = ["__version__", "checkpoint", "load_job", "monitor"]
__version__ = "0.1.0"

_HOMES: Final = {
    "checkpoint": ("megascale.checkpoint", None),
    "load_job": ("megascale.job", "load_job"),
    "monitor": ("megascale.monitor", None),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module or a function
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)
