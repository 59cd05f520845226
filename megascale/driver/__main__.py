"""`python -m megascale.driver RUN_DIR`: one driver life of a local run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from megascale.driver.driver import Driver
from megascale.driver.policy import policy_of
from megascale.driver.record import LocalRecord
from megascale.errors import MegascaleError
from megascale.fleet.local import LocalFleet
from megascale.job import load_job
from megascale.observe.rundir import RunDir

_EXTRA_NODES: Final = 2


async def _serve(root: str) -> None:
    run = RunDir(Path(root))
    job = load_job(run.job_file)
    policy = policy_of(job)
    fleet = LocalFleet(run, limit=policy.nodes + policy.spare_nodes + _EXTRA_NODES)
    driver = Driver(run, job, LocalRecord(run, job.metadata.name), fleet)
    await driver.run()


def main() -> int:
    """Returns the exit code."""
    try:
        asyncio.run(_serve(sys.argv[1]))
    except MegascaleError as error:
        sys.stderr.write(f"driver: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
