"""`python -m megascale.agent RUN_DIR NODE`: the agent of one node of a local run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from megascale.agent.agent import Agent
from megascale.errors import MegascaleError
from megascale.observe.rundir import RunDir


async def _serve(root: str, node: str) -> None:
    await Agent(RunDir(Path(root)), node).run()


def main() -> int:
    """Returns the exit code."""
    try:
        asyncio.run(_serve(*sys.argv[1:3]))
    except MegascaleError as error:
        sys.stderr.write(f"agent: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
