"""Reads the Python stack of another process with py-spy, if it is installed and permitted."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Final

from megascale.agent.processes import noted_as_helper

_TIMEOUT_S: Final = 5.0
_FRAMES: Final = 12


async def stack_of(pid: int) -> list[str]:
    """Return up to 12 frames of the main thread, innermost first; if that fails, one line with the reason."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        return ["no stack: py-spy is not installed"]
    command = (program, "dump", "--json", "--nonblocking", "--pid", str(pid))
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    except OSError as error:
        return [f"no stack: {program}: {error.strerror}"]
    try:
        with noted_as_helper(process.pid):
            output, problem = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return [f"no stack: py-spy did not answer in {_TIMEOUT_S:g} s"]
    if process.returncode != 0:
        return [f"no stack: {problem.decode(errors='replace').strip()[:200]}"]
    return _frames_in(output)


def _frames_in(output: bytes) -> list[str]:
    """Extract the main thread's frames from py-spy's JSON output."""
    try:
        threads = json.loads(output)
        main = next(
            (t for t in threads if t.get("thread_name") == "MainThread"), threads[0] if threads else {}
        )
        return [
            f"{frame['name']} ({frame['short_filename']}:{frame['line']})"
            for frame in main.get("frames", [])[:_FRAMES]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"no stack: what py-spy printed cannot be read: {error!r}"]
