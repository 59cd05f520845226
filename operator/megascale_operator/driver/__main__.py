"""`python -m megascale_operator.driver`: run the driver of a job on a cluster until the job ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megascale.driver.api import Driver, DriverPorts, LogContext, RunDir, StoreLog, configure_logs
from megascale.errors import FencedError, MegascaleError, first_error
from megascale.job.api import TrainingJob
from megascale_operator.driver.commands import CommandWatcher, checkpoint_uri, starting_manifest
from megascale_operator.driver.fleet import KubernetesFleet
from megascale_operator.driver.listener import ClusterListener
from megascale_operator.driver.metrics import PORT, MetricsServer
from megascale_operator.driver.record import KubernetesRecord, RecordWatch
from megascale_operator.driver.slots import Slots
from megascale_operator.driver.status import StatusWriter
from megascale_operator.driver.tokens import Tokens
from megascale_operator.kube.client import RestApi
from megascale_operator.kube.resources import TRAINING_JOBS
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DetectionDefaults

log = logging.getLogger(__name__)

RUN_DIR: Final = Path("/run/megascale/work")
JOB_FILE: Final = Path("/run/megascale/job/job.yaml")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line options."""

    namespace: str
    job: str
    pod: str
    pod_ip: str
    run_dir: Path = RUN_DIR
    job_file: Path = JOB_FILE
    metrics_port: int = PORT
    kubeconfig: Path | None = None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m megascale_operator.driver",
        description="Drives one TrainingJob: decides, and leaves objects to the operator.",
        epilog="Exit codes: 0 the job ended, or a successor took over; else start it again.",
    )
    parser.add_argument("--namespace", required=True, help="namespace of the job")
    parser.add_argument("--job", required=True, help="name of the TrainingJob")
    parser.add_argument("--pod", required=True, help="name of this pod")
    parser.add_argument("--pod-ip", required=True, help="address to listen on")
    parser.add_argument(
        "--run-dir", type=Path, default=RUN_DIR, help=f"folder to write to (default: {RUN_DIR})"
    )
    parser.add_argument(
        "--job-file", type=Path, default=JOB_FILE, help=f"what the slots run (default: {JOB_FILE})"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=PORT, help=f"port of /metrics, 0 = any (default: {PORT})"
    )
    parser.add_argument("--kubeconfig", type=Path, help="how to reach the cluster from outside of it")
    return parser


async def serve(options: Options, context: LogContext) -> None:
    """Run the job's driver until the job ends or the process gets SIGTERM.

    Raises:
        FencedError: another driver took over, or the job was deleted.
    """
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with await RestApi.connect(options.kubeconfig) as api:
        job = await api.get(TRAINING_JOBS, options.job, options.namespace)
        uri = checkpoint_uri(options.job_file)
        detection = DetectionDefaults.beside(options.job_file)
        manifest, generation = starting_manifest(job, options.job_file, detection)
        options.run_dir.mkdir(parents=True, exist_ok=True)
        run = RunDir(options.run_dir)
        slots = Slots(api, options.namespace, options.job)
        fleet = KubernetesFleet(slots, manifest.spec.scheduling.topology_keys)
        status = StatusWriter(api, options.namespace, options.job, options.pod, fleet)
        tokens = Tokens(api.get_path, slots, names.audience(options.namespace, str(job["metadata"]["uid"])))
        events = StoreLog(run.checkpoints(manifest.spec.checkpoint.uri))
        ports = DriverPorts(
            record=KubernetesRecord(api, options.namespace, options.job, options.pod),
            fleet=fleet,
            listener=ClusterListener(
                api,
                options.namespace,
                options.job,
                pod=options.pod,
                host=options.pod_ip,
                slots=slots,
                tokens=tokens,
            ),
            log=events,
            log_context=context,
            background_services=(
                events,
                fleet,
                RecordWatch(api, options.namespace, options.job),
                CommandWatcher(api, options.namespace, job, generation, fleet, status, uri, detection),
                status,
                MetricsServer(options.pod_ip, options.metrics_port),
            ),
        )
        await _drive(run, manifest, ports, fleet, slots, status, stopping)


async def _drive(
    run: RunDir,
    manifest: TrainingJob,
    ports: DriverPorts,
    fleet: KubernetesFleet,
    slots: Slots,
    status: StatusWriter,
    stopping: asyncio.Event,
) -> None:
    """Run the driver until the job ends, then write the final status; or until `stopping` is set."""
    ended: Driver | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(slots.run())
            stopped = tasks.create_task(stopping.wait())
            driving = tasks.create_task(_take_over_and_run(run, manifest, ports, fleet))
            await asyncio.wait((driving, stopped), return_when=asyncio.FIRST_COMPLETED)
            if driving.done():
                ended = driving.result()
            for task in (following, driving, stopped):
                task.cancel()
    except BaseExceptionGroup as problems:
        raise first_error(problems) from problems
    if ended is not None:
        await status.finish(ended)


async def _take_over_and_run(
    run: RunDir, manifest: TrainingJob, ports: DriverPorts, fleet: KubernetesFleet
) -> Driver:
    driver = await Driver.take_over(run, manifest, ports)
    fleet.bind(driver)
    await driver.run()
    return driver


def main() -> int:
    """Run the driver and return the process's exit code."""
    options = Options(**vars(_parser().parse_args()))
    context = LogContext("driver", job=options.job)
    configure_logs(context, as_json=True)
    try:
        asyncio.run(serve(options, context))
    except FencedError as error:
        log.warning("%s; this driver ends", error)
        return 0
    except MegascaleError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
