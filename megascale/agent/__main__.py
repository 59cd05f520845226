"""`python -m megascale.agent RUN_DIR NODE`: the agent of one node, of a local run or in a pod."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from megascale.agent.agent import Agent
from megascale.agent.config import KERNEL_LOG, AgentConfig
from megascale.errors import MegascaleError
from megascale.observe.logs import LogContext, configure_logs
from megascale.rpc.connect import Trust

log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m megascale.agent",
        description="Runs the ranks of one node and reports to the job's driver.",
        epilog="Exit codes: 0 released, 75 start me again, else failed.",
    )
    parser.add_argument("run_dir", type=Path, help="folder for everything the node writes")
    parser.add_argument("node", help="name of the node")
    pod = parser.add_argument_group("in a pod")
    pod.add_argument("--job-file", type=Path, help="the manifest (default: RUN_DIR/job.yaml)")
    pod.add_argument("--driver-file", type=Path, help="the driver's address (default: RUN_DIR/driver.json)")
    pod.add_argument(
        "--token-file", type=Path, help="what authenticates this agent (default: RUN_DIR/agents/NODE.token)"
    )
    pod.add_argument("--ca-file", type=Path, help="certificates the driver's one must be signed by")
    pod.add_argument("--server-name", default="", help="name in the driver's certificate")
    pod.add_argument("--host", help="address at which other nodes reach this one (default: loopback)")
    pod.add_argument("--pod", default="", help="name of the pod")
    pod.add_argument("--snapshot-root", type=Path, help="folder in memory for snapshots (default: /dev/shm)")
    pod.add_argument("--kernel-log", type=Path, help="kernel log of the node (in a pod: /dev/kmsg)")
    pod.add_argument("--grace", type=float, default=100.0, help="seconds to save in after SIGTERM")
    return parser


def config_of(arguments: argparse.Namespace) -> AgentConfig:
    """Convert the command line to an `AgentConfig`; paths that are not given default to `RUN_DIR`."""
    local = AgentConfig.local(arguments.run_dir, arguments.node)
    ca_file: Path | None = arguments.ca_file
    return AgentConfig(
        run=local.run,
        node=local.node,
        job_file=arguments.job_file or local.job_file,
        driver_file=arguments.driver_file or local.driver_file,
        token_file=arguments.token_file or local.token_file,
        host=arguments.host or local.host,
        trust=Trust(ca_file, arguments.server_name) if ca_file else None,
        pod=arguments.pod,
        snapshot_root=arguments.snapshot_root or local.snapshot_root,
        kernel_log=arguments.kernel_log or (KERNEL_LOG if arguments.pod else None),
        grace_s=arguments.grace,
    )


async def _serve(config: AgentConfig, context: LogContext) -> int:
    return await Agent(config, context).run()


def main() -> int:
    """Run the agent and return the process's exit code."""
    config = config_of(_parser().parse_args())
    context = LogContext("agent", node=config.node)
    configure_logs(context, as_json=bool(config.pod))
    try:
        return asyncio.run(_serve(config, context))
    except MegascaleError as error:
        log.error("%s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
