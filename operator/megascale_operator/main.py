"""The operator process: it always watches, writes only while it is the leader, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from megascale.errors import MegascaleError
from megascale_operator.checks.controller import CheckController
from megascale_operator.informers import Informers
from megascale_operator.jobs import JobController
from megascale_operator.kube.client import RestApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.config import load_configuration
from megascale_operator.kube.election import Election, Timing
from megascale_operator.kube.events import EventRecorder
from megascale_operator.metrics import Metrics
from megascale_operator.plan_applier import PlanApplier
from megascale_operator.probes import ANY, Probes
from megascale_operator.quarantine.breaker import Limits
from megascale_operator.quarantine.controller import QuarantineController
from megascale_operator.reconcile import names
from megascale_operator.reconcile.observed import Settings
from megascale_operator.tls.authority import utc
from megascale_operator.tls.secret import load_or_create
from megascale_operator.workers import Workers

log = logging.getLogger(__name__)

_JOB_WORKERS: Final = 8
_CA_RETRY_S: Final = 5.0
_SHUTDOWN_S: Final = 3.0
_METRICS_PERIOD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """Command line options (see `__main__`)."""

    settings: Settings
    kubeconfig: Path | None = None
    identity: str = ""
    address: str = ANY
    metrics_port: int = 8080
    health_port: int = 8081
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)


class Operator:
    """One replica of the operator."""

    def __init__(self, options: Options, api: RestApi, election: Election, clock: Clock) -> None:
        self._options, self._api, self._clock = options, api, clock
        self.election = election
        self.metrics = Metrics()
        settings = options.settings
        self.informers = Informers(api, clock)
        recorder = EventRecorder(api, names.OPERATOR, socket.gethostname(), clock)
        absorb = {informer.resource: informer.absorb for informer in self.informers.all}
        applier = PlanApplier(api, self.metrics, absorb)
        self.quarantine = QuarantineController(
            api,
            self.informers.nodes,
            recorder,
            self.metrics,
            clock,
            mode=settings.mode,
            limits=options.limits,
        )
        self.jobs = JobController(api, self.informers, applier, recorder, self.quarantine, settings, clock)
        self.checks = CheckController(self.informers, applier, recorder, self.quarantine, settings, clock)
        self.workers: list[Workers[Any]] = [
            Workers("jobs", self.jobs.queue, self.jobs.reconcile, clock, self.metrics, count=_JOB_WORKERS),
            Workers("nodes", self.quarantine.queue, self.quarantine.reconcile, clock, self.metrics),
            Workers("checks", self.checks.queue, self.checks.reconcile, clock, self.metrics),
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; then wait for writes in flight and release the Lease."""
        probes = Probes(self, self._options.address, self._options.metrics_port, self._options.health_port)
        await probes.start()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(informer.run()) for informer in self.informers.all]
            election = group.create_task(self.election.run())
            tasks += [group.create_task(self._update_metrics()), election]
            leading = group.create_task(self._run_while_leading())
            await stop.wait()
            log.info("stopping")
            election.cancel()
            self.election.fence.close()
            await self._api.wait_for_writes(_SHUTDOWN_S)
            leading.cancel()
            await asyncio.wait({leading, election}, timeout=_SHUTDOWN_S)
            await self.election.release()
            for task in tasks:
                task.cancel()
        await probes.stop()

    async def _run_while_leading(self) -> None:
        """Run the workers whenever this replica is the leader and its informers are synced."""
        while True:
            await self.election.leading.wait()
            for informer in self.informers.all:
                await informer.synced.wait()
            work = asyncio.create_task(self._run_workers())
            resigned = asyncio.create_task(self.election.resigned.wait())
            try:
                await asyncio.wait({work, resigned}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (work, resigned):
                    task.cancel()
                await asyncio.wait({work, resigned})
            if not work.cancelled() and (error := work.exception()):
                raise error

    async def _run_workers(self) -> None:
        await self._load_authority()
        self.quarantine.begin_leading()
        self.jobs.begin_leading()
        for key in self.informers.jobs.records:
            self.jobs.queue.add(key)
        for _, check in self.informers.checks.records:
            self.checks.queue.add(check)
        for name, node in self.informers.nodes.records.items():
            if node.quarantine or node.tainted:
                self.quarantine.queue.add(name[1])
        async with asyncio.TaskGroup() as group:
            for workers in self.workers:
                group.create_task(workers.run())

    async def _load_authority(self) -> None:
        """Load or create the CA. The workers wait for it, since agents verify their driver with it."""
        while self.jobs.authority is None:
            try:
                self.jobs.authority = await load_or_create(
                    self._api, self._options.settings.namespace, utc(self._clock.utc())
                )
            except MegascaleError as error:
                log.warning("the CA cannot be loaded: %s; retry in %g s", error, _CA_RETRY_S)
                await asyncio.sleep(_CA_RETRY_S)

    async def _update_metrics(self) -> None:
        while True:
            now = self._clock.monotonic()
            self.metrics.leader.set(self.election.leading.is_set())
            for informer in self.informers.all:
                self.metrics.watch_age.labels(informer.resource.plural).set(now - informer.last_response_at)
            await asyncio.sleep(_METRICS_PERIOD_S)

    @property
    def ready(self) -> bool:
        """Whether all informers are synced."""
        return all(informer.synced.is_set() for informer in self.informers.all)

    @property
    def stuck(self) -> list[str]:
        """Reconciles that make no progress; waiting for an unreachable API server does not count."""
        return [entry for workers in self.workers for entry in workers.stuck()]


async def serve(options: Options) -> None:
    """Run one replica until SIGTERM or SIGINT.

    Raises:
        InputError: the API server's configuration cannot be read.
    """
    clock = Clock()
    configuration = await load_configuration(options.kubeconfig)
    identity = options.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = f"{names.OPERATOR}/{identity}"
    lease_api = RestApi(configuration, timeout_s=options.timing.request_s, tries=1, agent=agent)
    election = Election(
        lease_api, options.settings.namespace, names.OPERATOR, identity, clock, options.timing
    )
    api = RestApi(configuration, guard=election.fence.guard, agent=agent)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(lease_api.close)
        stack.push_async_callback(api.close)
        await Operator(options, api, election, clock).run(stop)
