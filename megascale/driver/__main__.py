"""`python -m megascale.driver RUN_DIR`: run the driver of a local run until the job ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from megascale.core.contract.policy import Policy
from megascale.driver.driver import Driver
from megascale.driver.listener import LocalListener
from megascale.driver.log import EventLog
from megascale.driver.ports import DriverPorts
from megascale.driver.record import LocalRecord
from megascale.errors import MegascaleError
from megascale.fleet.injected import InjectedFleet
from megascale.fleet.local import LocalFleet
from megascale.job import TrainingJob, load_job
from megascale.observe.logs import LogContext, configure_logs
from megascale.observe.rundir import RunDir

log = logging.getLogger(__name__)

_EXTRA_NODES: Final = 2


def fleet_of(run: RunDir, job: TrainingJob, policy: Callable[[], Policy]) -> LocalFleet:
    """Return the fleet of a local run; if the manifest has `faults`, it marks injected node losses.

    Args:
        policy: returns the policy in force, which bounds the number of nodes.
    """

    def limit() -> int:
        return policy().nodes + policy().spare_nodes + _EXTRA_NODES

    return InjectedFleet(run, limit) if job.spec.faults else LocalFleet(run, limit)


async def _serve(root: str, context: LogContext) -> None:
    run = RunDir(Path(root))
    job = load_job(run.job_file)
    context.job = job.metadata.name
    ports = DriverPorts(
        LocalRecord(run, job.metadata.name),
        fleet_of(run, job, lambda: driver.core.policy),
        LocalListener(run),
        EventLog(run),
        shared_machine=True,
        reopens=True,
        log_context=context,
    )
    driver = await Driver.take_over(run, job, ports)
    await driver.run()


def main() -> int:
    """Run the driver and return the process's exit code."""
    context = LogContext("driver")
    configure_logs(context, as_json=False)
    try:
        asyncio.run(_serve(sys.argv[1], context))
    except MegascaleError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
