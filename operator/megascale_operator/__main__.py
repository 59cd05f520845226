"""`python -m megascale_operator`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Final

from megascale.errors import MegascaleError
from megascale.observe.logs import LogContext, configure_logs
from megascale_operator.main import Options, serve
from megascale_operator.probes import ANY
from megascale_operator.quarantine.breaker import Limits
from megascale_operator.reconcile.defaults import DetectionDefaults
from megascale_operator.reconcile.mark import MODES
from megascale_operator.reconcile.observed import Settings
from megascale_operator.reconcile.storage import CheckpointRoot

log = logging.getLogger(__name__)

_EPILOG: Final = """examples:
  python -m megascale_operator --namespace megascale-system --mode Observe --image IMAGE
  python -m megascale_operator --kubeconfig FILE --image IMAGE --metrics-port 0 --health-port 0
exit codes: 0 stopped by SIGTERM, 1 failed, 2 bad usage or configuration, 130 interrupted"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megascale_operator",
        description="Reconcile the TrainingJobs and NodeChecks of a cluster. One of several replicas leads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--namespace", default="megascale-system", help="the operator's namespace: Lease, CA, check pods")
    add("--image", required=True, help="image of driver, slot and check pods, unless a job sets another")
    add(
        "--mode",
        choices=MODES,
        default="Observe",
        help="strongest action on unhealthy nodes; jobs can lower it (default: %(default)s)",
    )
    add(
        "--checkpoint-root",
        default="",
        metavar="LOCATION",
        help="checkpoints of jobs without checkpoint.uri: a directory that exists on every node, or "
        "claim:NAME",
    )
    add(
        "--detection-defaults",
        default="",
        metavar="YAML",
        help="defaults of fields that a job's spec.detection does not set, such as '{shadow: [straggler]}'",
    )
    add("--kubeconfig", type=Path, help="kubeconfig to use; default: the cluster this pod runs in")
    add("--identity", default="", help="name in the Lease; default: host name and a random suffix")
    add("--address", default=ANY, help="IPv4 or IPv6 address to listen on (default: %(default)s)")
    add("--metrics-port", type=int, default=8080, help="port of /metrics, 0 = any")
    add("--health-port", type=int, default=8081, help="port of /healthz and /readyz, 0 = any")
    add(
        "--max-quarantines-per-hour",
        type=int,
        default=Limits().per_hour,
        help="nodes quarantined in any hour, at most (default: %(default)s)",
    )
    add(
        "--max-quarantined-share",
        type=float,
        default=Limits().share,
        help="share (0 to 1) of all nodes in quarantine, at most, but always one (default: %(default)s)",
    )
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


def main() -> int:
    """Run the operator; return its exit code."""
    given = _parser().parse_args()
    level: int = getattr(logging, given.log_level)
    configure_logs(LogContext("operator"), as_json=given.kubeconfig is None, level=level)
    try:
        return _run(given)
    except MegascaleError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    root = CheckpointRoot.parse(given.checkpoint_root)
    detection = DetectionDefaults.parse(given.detection_defaults)
    options = Options(
        settings=Settings(given.image, given.namespace, given.mode, root, detection),
        kubeconfig=given.kubeconfig,
        identity=given.identity,
        address=given.address,
        metrics_port=given.metrics_port,
        health_port=given.health_port,
        limits=Limits(given.max_quarantines_per_hour, given.max_quarantined_share),
    )
    asyncio.run(serve(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
