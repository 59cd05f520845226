"""What one device of a node can do, and whether its numbers are right. Imports torch; run in a worker only.

The matrices hold small integers, so every product and every partial sum is exact in float32: the result
does not depend on the order of the sum, the number of threads, the kernel or the hardware, and its checksum
is known beforehand. One wrong bit is a broken part, never rounding.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

PRODUCT_CRC: Final = {1024: 0x6FE8D100, 2048: 0x098F7CC5}
"""CRC-32 of the exact product (int32, little endian) by matrix size; a test derives it in integers."""
_CPU_SIZE: Final = 1024
_GPU_SIZE: Final = 2048
_GPU_TIMED_SIZE: Final = 8192
_CPU_COPY_BYTES: Final = 64 << 20
_GPU_COPY_BYTES: Final = 1 << 30
_HOST_LINK_BYTES: Final = 256 << 20
_LOOPBACK_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 1 << 20
_SOCKET_TIMEOUT_S: Final = 5.0
_ENTRY: Final = 15
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of one device.

    Attributes:
        check: gemm, memory, loopback, host-to-device, device-to-host, all-to-all, bits.
        value: in `unit`; 0.0 where the check has no figure.
        wrong: what was computed or moved wrongly, "" if every bit is right.
    """

    check: str
    value: float
    unit: str
    wrong: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def exact_matrix(size: int, seed: int, device: torch.device = _CPU) -> torch.Tensor:
    """(size, size) float32 of integers within +-15, the same on every machine and version."""
    x = torch.arange(size * size, dtype=torch.int64, device=device) + seed * 7_919
    for multiplier, shift in ((0x7FEB352D, 15), (0x046CA68B, 16)):
        x = (x ^ (x >> shift)) * multiplier & 0xFFFFFFFF
    x ^= x >> 16
    return (x % (2 * _ENTRY + 1) - _ENTRY).to(torch.float32).reshape(size, size)


def product_crc(product: torch.Tensor) -> int:
    """CRC-32 of a product of exact matrices."""
    return zlib.crc32(product.cpu().to(torch.int32).numpy().tobytes())


def measure_device(
    device: torch.device, *, seconds: float, host: str, corrupt: bool = False, repeat: int = 1
) -> Iterator[Measure]:
    """All figures of one device, one by one, about `seconds` each for products and copies.

    Args:
        host: address for the loopback transfer.
        corrupt: flip a bit of the product before it is checked; for tests and demonstrations.
        repeat: do the timed work so many times and count it once; a slow device, for the same purpose.
    """
    cuda = device.type == "cuda"
    yield _bits(device, corrupt=corrupt)
    yield _gemm(device, seconds, repeat)
    yield _memory(device, _GPU_COPY_BYTES if cuda else _CPU_COPY_BYTES, seconds)
    if cuda:
        yield from _host_link(device, seconds)
    yield loopback(host)


def _bits(device: torch.device, *, corrupt: bool) -> Measure:
    """The exact product against its known checksum; on a GPU through the vector and the matrix units."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    a, b = exact_matrix(size, 1, device), exact_matrix(size, 2, device)
    for precision in ("highest", "high") if device.type == "cuda" else ("highest",):
        torch.set_float32_matmul_precision(precision)
        product = a @ b
        if corrupt:
            product[size // 2, size // 3] += 1
        found = product_crc(product)
        if found != PRODUCT_CRC[size]:
            expected = f"CRC {found:08x}, expected {PRODUCT_CRC[size]:08x}"
            return Measure(
                "bits", 0.0, "", f"the product of two {size} x {size} integer matrices: {expected}"
            )
    return Measure("bits", 0.0, "")


def _gemm(device: torch.device, seconds: float, repeat: int) -> Measure:
    """Throughput of square products, work by elapsed time; every result must equal the first."""
    cuda = device.type == "cuda"
    size, dtype = (_GPU_TIMED_SIZE, torch.bfloat16) if cuda else (_CPU_SIZE, torch.float32)
    a, b = (exact_matrix(size, seed, device).to(dtype) for seed in (1, 2))
    first = a @ b
    out = torch.empty_like(first)
    wrong = 0

    def once() -> None:
        for _ in range(repeat):
            torch.mm(a, b, out=out)

    def check() -> None:
        nonlocal wrong
        wrong += not torch.equal(out, first)

    rate = 2.0 * size**3 * _rate(once, seconds, device, check)
    unit, scale = ("TFLOP/s", 1e12) if cuda else ("GFLOP/s", 1e9)
    return Measure("gemm", rate / scale, unit, f"{wrong} repetitions gave other bits" if wrong else "")


def _memory(device: torch.device, size: int, seconds: float) -> Measure:
    """Bytes read and written per second by copies, and whether they arrived."""
    source = torch.arange(size // 4, dtype=torch.int32, device=device)
    target = torch.zeros_like(source)
    rate = _rate(lambda: target.copy_(source), seconds / 2, device)
    wrong = "" if torch.equal(source, target) else "a copy in memory differs from its source"
    return Measure("memory", 2.0 * size * rate / 1e9, "GB/s", wrong)


def _host_link(device: torch.device, seconds: float) -> Iterator[Measure]:
    """Pinned transfers both ways over PCIe (or what stands in for it)."""
    here = torch.arange(_HOST_LINK_BYTES // 4, dtype=torch.int32).pin_memory()
    back = torch.zeros_like(here).pin_memory()
    there = torch.empty_like(here, device=device)
    down = _rate(lambda: there.copy_(here, non_blocking=True), seconds / 2, device)
    up = _rate(lambda: back.copy_(there, non_blocking=True), seconds / 2, device)
    wrong = "" if torch.equal(here, back) else "what came back from the device differs from what went there"
    yield Measure("host-to-device", _HOST_LINK_BYTES * down / 1e9, "GB/s", wrong)
    yield Measure("device-to-host", _HOST_LINK_BYTES * up / 1e9, "GB/s", wrong)


def _rate(
    work: Callable[[], object],
    seconds: float,
    device: torch.device,
    check: Callable[[], object] = lambda: None,
) -> float:
    """Calls per second: all calls by all the time they took.

    Not the median of single calls: a part that stands still now and then would hide between them. The time
    of `check` does not count.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    calls, spent = 0, 0.0
    while spent < seconds or calls < 3:
        begin = time.perf_counter()
        work()
        wait()
        spent += time.perf_counter() - begin
        calls += 1
        check()
    return calls / spent


def loopback(host: str) -> Measure:
    """A transfer through the node's own network stack by its address `host`, checked byte for byte."""
    sent = bytes(range(256)) * (_CHUNK_BYTES // 256)
    count = _LOOPBACK_BYTES // _CHUNK_BYTES
    received = bytearray(_LOOPBACK_BYTES)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(_SOCKET_TIMEOUT_S)

        def send() -> None:
            with socket.create_connection(server.getsockname()[:2], timeout=_SOCKET_TIMEOUT_S) as out:
                for _ in range(count):
                    out.sendall(sent)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with server.accept()[0] as connection:
            connection.settimeout(_SOCKET_TIMEOUT_S)
            begin = time.perf_counter()
            at, view = 0, memoryview(received)
            while got := connection.recv_into(view[at:]):
                at += got
            spent = time.perf_counter() - begin
        sender.join(_SOCKET_TIMEOUT_S)
    wrong = "" if received == sent * count else "bytes sent over loopback arrived changed"
    return Measure("loopback", _LOOPBACK_BYTES / spent / 1e9, "GB/s", wrong)
