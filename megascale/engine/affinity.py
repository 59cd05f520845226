"""Binds a rank to the cores on its GPU's socket, so that copies and kernel launches do not cross sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import torch

_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")


def parse_cores(text: str) -> set[int]:
    """Parse the kernel's list format: "0-3,8" is {0, 1, 2, 3, 8}.

    Raises:
        ValueError: the text is not such a list.
    """
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def cores_beside(bus_address: str, devices: Path = _PCI_DEVICES) -> set[int]:
    """Cores on the socket of the PCI device at `bus_address`; empty if the kernel does not list them."""
    try:
        return parse_cores((devices / bus_address / "local_cpulist").read_text())
    except OSError:
        return set()


def bus_address(device: torch.device) -> str:
    """PCI address of a GPU as the kernel writes it, such as 0000:4b:00.0."""
    gpu: Any = torch.cuda.get_device_properties(device)
    return f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"


def stay_on(cores: set[int]) -> str:
    """Bind this thread, and those it starts, to the allowed ones of `cores`; returns a line for the log."""
    usable = cores & os.sched_getaffinity(0)
    if not usable:
        return "threads: on any core"
    os.sched_setaffinity(0, usable)
    return f"threads: on the {len(usable)} cores next to the GPU"
