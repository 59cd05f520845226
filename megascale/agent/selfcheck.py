"""Checks whether this node computes wrong numbers, by running `megascale.diagnose` in a subprocess."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from megascale.agent.processes import noted_as_helper

CHECK: Final = (sys.executable, "-m", "megascale.diagnose", "--light", "--local", "--json")


async def wrong_numbers(deadline_s: float, command: Sequence[str] = CHECK) -> str:
    """Run the check and return a description of the wrong result, "" if there was none.

    Only results that differ in their bits count as wrong; a node that is slow or cannot be measured, or a
    check that takes longer than `deadline_s` seconds, returns "".

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
        with noted_as_helper(process.pid):
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
