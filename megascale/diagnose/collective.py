"""All-to-all inside a node, all-reduce between two, as checks. Imports torch; run in a worker only.

NCCL where the ranks have GPUs, else gloo. Every result is compared with what it must be, exactly: the
contributions are small integers.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psutil
import torch
from torch import distributed
from torch._C._distributed_c10d import TCPStore

from megascale.diagnose.measure import Measure

_CPU_ALL_TO_ALL_BYTES: Final = 4 << 20
_GPU_ALL_TO_ALL_BYTES: Final = 512 << 20
_CPU_ALL_REDUCE_BYTES: Final = 1 << 20
_GPU_ALL_REDUCE_BYTES: Final = 256 << 20
_PERIOD: Final = 251


@dataclass(frozen=True, slots=True)
class World:
    """The ranks of one collective check.

    Attributes:
        host, port: where rank 0 serves the store.
        listener: the listening socket of that port in rank 0's process, else None.
        address: this rank's own address; its interface carries the traffic.
        timeout_s: bound of every single wait: connect, collective.
    """

    rank: int
    size: int
    host: str
    port: int
    listener: socket.socket | None
    address: str
    timeout_s: float

    @classmethod
    def from_request(cls, request: dict[str, Any], rank: int, listener: socket.socket | None) -> World:
        """This rank's part in a worker's request."""
        return cls(
            rank=rank,
            size=request["size"],
            host=request["host"],
            port=request["port"],
            listener=listener,
            address=request["address"],
            timeout_s=request["timeout"],
        )


def join(world: World, device: torch.device) -> None:
    """Make the default process group of all ranks.

    Raises:
        RuntimeError: the others did not come within the time-out.
    """
    interface = interface_of(world.address)
    if interface:
        # The environment is the only way to tell gloo and NCCL.
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    timeout = timedelta(seconds=world.timeout_s)
    store = TCPStore(
        world.host,
        world.port,
        None,
        is_master=world.listener is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=world.listener.detach() if world.listener else None,
    )
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
    )


def interface_of(address: str) -> str:
    """Name of the network interface that has `address`, "" if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return name
    if address.startswith("127."):
        return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
    return ""


def all_to_all(world: World, device: torch.device, *, seconds: float) -> Measure:
    """Each rank sends a different block to every other; GB/s that one rank sends to others."""
    join(world, device)
    total = _GPU_ALL_TO_ALL_BYTES if device.type == "cuda" else _CPU_ALL_TO_ALL_BYTES
    block = total // 4 // world.size
    ramp = torch.arange(block, dtype=torch.int32, device=device)
    sent = torch.cat([ramp + world.rank * world.size + peer for peer in range(world.size)])
    received = torch.zeros_like(sent)

    times = _timed(lambda: distributed.all_to_all_single(received, sent), device, seconds)
    for peer, piece in enumerate(received.chunk(world.size)):
        if not torch.equal(piece, ramp + peer * world.size + world.rank):
            return Measure("all-to-all", 0.0, "GB/s", f"what rank {peer} sent arrived changed")
    return Measure("all-to-all", 4 * block * (world.size - 1) / _mean(times) / 1e9, "GB/s")


def all_reduce(world: World, device: torch.device, *, seconds: float) -> tuple[float, str]:
    """Seconds of one all-reduce over all ranks, and what was summed wrongly ("" if nothing)."""
    join(world, device)
    length = (_GPU_ALL_REDUCE_BYTES if device.type == "cuda" else _CPU_ALL_REDUCE_BYTES) // 4
    ramp = (torch.arange(length, device=device) % _PERIOD).to(torch.float32)
    buffer = torch.empty_like(ramp)

    def refill() -> None:
        torch.mul(ramp, world.rank + 1, out=buffer)

    times = _timed(lambda: distributed.all_reduce(buffer), device, seconds, before=refill)
    expected = ramp * (world.size * (world.size + 1) // 2)
    wrong = int((buffer != expected).sum().item())
    return _mean(times), f"{wrong} of {length} sums of the all-reduce are wrong" if wrong else ""


def _timed(
    work: Callable[[], object],
    device: torch.device,
    seconds: float,
    before: Callable[[], object] = lambda: None,
) -> list[float]:
    """Durations of at least 2 repetitions until `seconds` are spent; the ranks agree on when to stop."""
    spent = torch.zeros(1, device=device)
    times: list[float] = []
    for count in range(-1, 1_000):
        before()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if count < 0:
            continue
        times.append(time.perf_counter() - begin)
        spent.fill_(sum(times))
        distributed.all_reduce(spent, distributed.ReduceOp.MAX)
        if count >= 1 and spent.item() >= seconds:
            break
    return times


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
