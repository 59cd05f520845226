"""Compiles the optimizers' Triton kernels for an H100, which needs no GPU; prints memory accesses as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megascale.optim import fused, fused_kernels

TABLE = dict.fromkeys(("table", "sizes", "chunk_tensor", "chunk_number"), "*i64")
ARRAYS = {"squares": "*fp32", "rates": "*fp32"}


def compiled(name: str, *, aligned: bool) -> dict[str, int]:
    """Vector and scalar loads and stores of one kernel's loop."""
    kernel: Any = getattr(fused_kernels, name)
    fixed = {"ALIGNED": aligned, "CHUNK": fused.CHUNK, "BLOCK": fused._BLOCK}
    types = TABLE | ARRAYS | dict.fromkeys(fixed, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "fp32") for argument in kernel.arg_names},
        constexprs={(kernel.arg_names.index(argument),): value for argument, value in fixed.items()},
    )
    made = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": fused._WARPS})
    assert made.asm["cubin"]
    found = {}
    for kind in ("ld", "st"):
        found[f"{kind}Vector"] = len(re.findall(rf"@%p\d+ {kind}\.global\.v4\.b32", made.asm["ptx"]))
        found[f"{kind}Scalar"] = len(re.findall(rf"@%p\d+ {kind}\.global\.b32", made.asm["ptx"]))
    return found


if __name__ == "__main__":
    names = ("directions", "apply", "lion")
    print(json.dumps({f"{n}{a}": compiled(n, aligned=bool(a)) for n in names for a in (1, 0)}))
