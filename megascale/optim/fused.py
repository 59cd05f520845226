"""Optimizer steps on a GPU, as Triton kernels over all tensors at once (operator fusion, MegaScale 3.3).

A step of LAMB moves 40 bytes per parameter of fp32 state, and 44 with the gradient norm. That is the minimum,
because the norms of weights and updates are computed while these are in registers. A step of Lion moves 20.

    directions   read w, g, m, v; write m, v and u in place of g; square sums of w and u     28
    apply        read w, u; write w                                                          12
    lion         read w, g, m; write w, m                                                    20

Tensors are split into chunks, one program each. Programs read addresses from a table, so that any number of
tensors takes one launch. Not run on a GPU yet: tests check the numerics in Triton's interpreter, and the
memory accesses in the code that it compiles for an H100.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from megascale.optim import fused_kernels
from megascale.optim.factors import Factors

CHUNK: Final = 32_768
_BLOCK: Final = 2048
_WARPS: Final = 8


class TensorTable:
    """Addresses of matching tensors of several lists, split into chunks; valid until their memory moves.

    Each of `lists` holds contiguous fp32 tensors on one device; position i of every list has the same size.
    """

    def __init__(self, *lists: list[Tensor]) -> None:
        device = lists[0][0].device
        self.key = table_key(*lists)
        sizes = [tensor.numel() for tensor in lists[0]]
        per_tensor = [-(-size // CHUNK) for size in sizes]
        chunks = [(row, number) for row, count in enumerate(per_tensor) for number in range(count)]
        self.count = len(chunks)
        # A thread then moves four values at once.
        self.aligned = all(address % 16 == 0 for address in self.key) and all(n % 4 == 0 for n in sizes)
        self.squares = torch.zeros((self.count, 2), device=device)
        columns = len(lists)
        addresses = [[self.key[c * len(sizes) + row] for c in range(columns)] for row in range(len(sizes))]
        self._tensors = (
            _on(device, addresses, torch.int64),
            _on(device, sizes, torch.int64),
            _on(device, [row for row, _ in chunks], torch.int64),
            _on(device, [number for _, number in chunks], torch.int64),
        )
        self._chunks_per_tensor = _on(device, per_tensor, torch.int64)

    def lamb_directions(self, factors: Factors, scale: float) -> Tensor:
        """Over (w, g, m, v): update the moments with scaled gradients and overwrite g with the direction u.

        Returns:
            Sums of squares of w and of u per tensor, fp64 (tensors, 2).
        """
        self._launch(
            fused_kernels.directions,
            self.squares,
            scale,
            1 - factors.beta1,
            factors.beta2,
            1 - factors.beta2,
            factors.correction1,
            factors.correction2,
            factors.eps,
            factors.weight_decay,
        )
        return torch.segment_reduce(
            self.squares.double(), "sum", lengths=self._chunks_per_tensor, axis=0, unsafe=True
        )

    def lamb_apply(self, rates: Tensor) -> None:
        """Over (w, u, ...): w -= rate * u with one fp32 rate per tensor."""
        self._launch(fused_kernels.apply, rates)

    def lion(self, *, lr: float, beta1: float, beta2: float, weight_decay: float, scale: float) -> None:
        """Over (w, g, m): one step of Lion."""
        self._launch(fused_kernels.lion, scale, lr, 1 - beta1, 1 - beta2, 1 - lr * weight_decay)

    def _launch(self, kernel: Any, *numbers: float | Tensor) -> None:  # noqa: ANN401 - a compiled kernel
        kernel[(self.count,)](
            *self._tensors, *numbers, ALIGNED=self.aligned, CHUNK=CHUNK, BLOCK=_BLOCK, num_warps=_WARPS
        )


def table_key(*lists: list[Tensor]) -> tuple[int, ...]:
    """Addresses of the tensors; a table is valid as long as they stay the same."""
    return tuple(tensor.data_ptr() for tensors in lists for tensor in tensors)


def _on(device: torch.device, values: list[Any], dtype: torch.dtype) -> Tensor:
    made = torch.tensor(values, dtype=dtype)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


class Tables:
    """Caches the table of each parameter group."""

    def __init__(self) -> None:
        self._tables: dict[int, TensorTable] = {}

    def of(self, group: int, *lists: list[Tensor]) -> TensorTable:
        """The table of these tensors, a new one if their memory has moved."""
        table = self._tables.get(group)
        if table is None or table.key != table_key(*lists):
            table = self._tables[group] = TensorTable(*lists)
        return table
