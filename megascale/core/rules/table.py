"""The built-in rules in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from megascale.core.rules import (
    accelerators,
    benign,
    causes,
    code,
    gpu,
    host,
    launchers,
    nccl,
    nccl_tests,
    network,
    storage,
    xid,
)
from megascale.core.rules.model import LogRule

# Reports of the GPU driver first, since they are certain; then benign lines; then specific before general; at
# last rules by cause (errno, signal, device family), and what looks like an error and is none of these.
BUILTIN: Final[tuple[LogRule, ...]] = (
    *xid.RULES,
    *benign.RULES,
    *nccl_tests.RULES,
    *causes.BUS_RULES,
    *gpu.RULES,
    *accelerators.RULES,
    *nccl.RULES,
    *host.RULES,
    *launchers.RULES,
    *storage.RULES,
    *code.RULES[:3],
    *network.RULES,
    *causes.ERRNO_RULES,
    *accelerators.STATUS_RULES,
    causes.NATIVE_ASSERT,
    *code.RULES[3:],
    causes.EXCEPTION_IN_TEXT,
    *causes.EXIT_RULES,
    *causes.DEVICE_RULES,
    *causes.PROGRAM_RULES,
    causes.UNKNOWN,
)
