"""The built-in rules in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from megascale.core.rules import benign, code, gpu, host, nccl, network, storage, xid
from megascale.core.rules.model import LogRule

# Reports of the GPU driver first, since they are certain; then benign lines; then specific before general.
BUILTIN: Final[tuple[LogRule, ...]] = (
    *xid.RULES,
    *benign.RULES,
    *gpu.RULES,
    *nccl.RULES,
    *host.RULES,
    *storage.RULES,
    *code.RULES[:3],
    *network.RULES,
    *code.RULES[3:],
)
