"""How fast this node computes now: matrix products timed beside the ranks, in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

_CHECK: Final = "gemm"


async def node_speed(seconds: float, deadline_s: float) -> float:
    """Speed of the slowest device, 0.0 when it could not be measured in time.

    Raises:
        OSError: the measurement cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "megascale.agent.gemm_benchmark",
        str(seconds),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(deadline_s):
            out, _ = await process.communicate()
            return float(out)
    except (TimeoutError, ValueError):
        return 0.0
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def measured(seconds: float) -> float:
    """Matrix products, `seconds` on each device of this node; the rate of the slowest."""
    import torch

    from megascale.diagnose.measure import measure_device

    torch.set_num_threads(1)
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    rates = []
    for name in names:
        figures = measure_device(torch.device(name), seconds=seconds, host="127.0.0.1")
        rates.append(next(figure.value for figure in figures if figure.check == _CHECK))
    return min(rates)


if __name__ == "__main__":
    sys.stdout.write(f"{measured(float(sys.argv[1]))}\n")
