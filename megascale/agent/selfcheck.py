"""Whether this node computes wrong numbers, asked of `megascale.diagnose` in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

CHECK: Final = (sys.executable, "-m", "megascale.diagnose", "--light", "--local", "--json")


async def wrong_numbers(deadline_s: float, command: Sequence[str] = CHECK) -> str:
    """What the node computed wrong, "" when nothing was, or when that could not be found out in time.

    Only bits that differ count: a node that is slow or cannot be measured is no reason for wrong numbers.

    Raises:
        OSError: the check cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), deadline_s)
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    verdict = _read(out)
    return str(verdict.get("reason", "")) if verdict.get("kind") == "wrong" else ""


def _read(out: bytes) -> dict[str, Any]:
    try:
        verdict = json.loads(out)
    except ValueError:
        return {}
    return verdict if isinstance(verdict, dict) else {}
