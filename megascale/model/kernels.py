"""Attention kernels that skip keys outside of the window, and the choice of one at start.

Both are FlashAttention-2 (Dao 2023; MegaScale 3.1 names it): the `flash-attn` package, and the copy in torch
behind `torch.nn.attention.varlen`. Both count the keys before a query, so a window of w is passed as w - 1.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from megascale.errors import InputError
from megascale.model.attention import Backend, Reference

Choice = Literal["auto", "flash", "varlen", "reference"]
FIELD: Final = "spec.runtime.megatron.model.attention"
_CAPABILITY: Final = (8, 0)
_HALF: Final = (torch.bfloat16, torch.float16)


def _left(window: int | None) -> int:
    return -1 if window is None else window - 1


@functools.lru_cache(maxsize=8)
def row_borders(batch: int, sequence: int, device: torch.device) -> Tensor:
    """Borders of rows with one document each: int32 (batch + 1,)."""
    return torch.arange(0, (batch + 1) * sequence, sequence, dtype=torch.int32, device=device)


class Flash:
    """The `flash-attn` package; `kernel` is its `flash_attn_varlen_func`."""

    name = "flash"

    def __init__(self, kernel: Callable[..., Tensor]) -> None:
        self._kernel = kernel

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, borders: Tensor | None
    ) -> Tensor:
        batch, sequence = query.shape[:2]
        if borders is None:
            borders = row_borders(batch, sequence, query.device)
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        out = self._kernel(
            q, k, v, borders, borders, sequence, sequence, causal=True, window_size=(_left(window), 0)
        )
        return out.view(query.shape)


class Varlen:
    """torch's own FlashAttention-2; `kernel` is `torch.nn.attention.varlen.varlen_attn`."""

    name = "varlen"

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self._kernel = kernel
        self._groups_heads = "enable_gqa" in inspect.signature(kernel).parameters

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, borders: Tensor | None
    ) -> Tensor:
        batch, sequence, heads, _ = query.shape
        if borders is None:
            borders = row_borders(batch, sequence, query.device)
        options: dict[str, Any] = {}
        if key.size(2) != heads:
            if self._groups_heads:
                options["enable_gqa"] = True
            else:  # torch 2.11
                key, value = (t.repeat_interleave(heads // t.size(2), dim=2) for t in (key, value))
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        window_size = (_left(window), 0)
        out: Tensor = self._kernel(
            q, k, v, borders, borders, sequence, sequence, window_size=window_size, **options
        )
        return out.view(query.shape)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A backend, and the reason for the choice, for the log."""

    backend: Backend
    reason: str


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlashAttention-2 cannot run with these tensors, None when it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, this rank has {device.type}"
    if dtype not in _HALF:
        return f"needs bf16 or fp16, this job computes in {dtype}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return f"needs compute capability {'.'.join(map(str, _CAPABILITY))}"
    return None


def _flash() -> Backend | str:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return Flash(importlib.import_module("flash_attn").flash_attn_varlen_func)


def _varlen() -> Backend | str:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    kernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if "window_size" not in inspect.signature(kernel).parameters:
        return f"varlen_attn of torch {torch.__version__} has no window_size"
    return Varlen(kernel)


def choose_backend(asked: Choice, device: torch.device, dtype: torch.dtype) -> Chosen:
    """The backend for attention on `device` in `dtype`.

    "auto" takes flash-attn if it is installed, else torch's FlashAttention-2, else the reference.

    Raises:
        InputError: the backend requested by name cannot run here.
    """
    if asked == "reference":
        return Chosen(Reference(), "asked for")
    obstacle = _obstacle(device, dtype)
    reasons: list[str] = []
    for name, find in (("flash", _flash), ("varlen", _varlen)):
        if asked in ("auto", name):
            found = obstacle or find()
            if not isinstance(found, str):
                return Chosen(found, "asked for" if asked == name else "; ".join(reasons) or "preferred")
            reasons.append(f"{name} {found}")
    if asked != "auto":
        raise InputError(f"{FIELD} is {asked}: {reasons[0]}; use auto")
    return Chosen(Reference(), "; ".join(reasons))
