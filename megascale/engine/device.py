"""The device of a rank, an accelerator or the CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

CONNECTIONS: Final = "CUDA_DEVICE_MAX_CONNECTIONS"


@dataclass(frozen=True, slots=True)
class Device:
    """The device that this rank computes on.

    Attributes:
        torch_device: the torch device of all tensors.
        backend: torch.distributed backend of its collectives.
        name: model of the accelerator, or "cpu".
    """

    torch_device: torch.device
    backend: str
    name: str

    def dtype(self, precision: str) -> torch.dtype:
        """As `dtype_of`, on this device."""
        return dtype_of(precision, self.torch_device)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The type of parameters and activations for a manifest's precision "auto", "fp32" or "bf16"."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def order_launches(tensor: int) -> str | None:
    """Have a GPU start kernels in the order in which they are launched; call it before CUDA is initialised.

    megatron-core's tensor-parallel layers launch a collective and then the product that it overlaps with, and
    rely on the collective starting first. With one hardware queue it does. A user's own value is kept.

    Args:
        tensor: tensor-parallel size.

    Returns:
        A line for the log; None if there is nothing to order.
    """
    if tensor == 1:
        return None
    value = os.environ.setdefault(CONNECTIONS, "1")
    needed = "" if value == "1" else "; megatron-core expects 1 with tensor-parallel ranks"
    return f"{CONNECTIONS}: {value}{needed}"


@contextlib.contextmanager
def open_device(local_rank: int) -> Iterator[Device]:
    """This rank's accelerator, or the CPU with megatron-core's CUDA calls bridged within the block."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
        yield Device(device, "nccl", torch.cuda.get_device_name(device))
        return
    from megascale.engine.bridge import cpu_bridge

    # The order of a sum depends on the number of threads: one, so that a resumed run repeats bit for bit.
    torch.set_num_threads(1)
    with cpu_bridge():
        yield Device(torch.device("cpu"), "gloo", "cpu")
