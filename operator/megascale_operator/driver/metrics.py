"""The driver's `/metrics` endpoint for Prometheus, with the job's progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from megascale.driver.api import RunningDriver
from megascale_operator.reconcile.driver_pod import METRICS_PORT

log = logging.getLogger(__name__)

PORT: Final = METRICS_PORT
_GAUGES: Final = (
    ("step", "step", "Last completed step."),
    ("steps", "steps", "Steps that the job is to do."),
    ("loss", "loss", "Loss of the newest step."),
    ("step_seconds", "stepSeconds", "Duration of the newest step."),
    ("tokens_per_second", "tokensPerSecond", "Tokens trained on per second, of late."),
    ("mfu_ratio", "mfu", "Share of the hardware's rated FLOP/s that the model's FLOPs amount to."),
    ("goodput_ratio", "goodput", "Share of the job's time that was productive."),
    ("checkpoint_step", "checkpointStep", "Step of the newest checkpoint that is committed."),
    ("attempt", "attempt", "Number of the launch that runs."),
    ("term", "term", "Number of this driver's life."),
    ("dropped_events", "droppedEvents", "Log lines and hardware events this driver had no room for."),
)
"""Name without `megascale_job_`, key of the overview, help text. Unknown values are left out, not 0."""


class _JobCollector(Collector):
    """Converts the driver's status overview to metrics at every scrape."""

    def __init__(self, overview: Callable[[], dict[str, Any]]) -> None:
        self._overview = overview

    def collect(self) -> Iterator[Metric]:
        found = self._overview()
        for name, key, words in _GAUGES:
            value = found.get(key)
            if isinstance(value, int | float):
                yield GaugeMetricFamily(f"megascale_job_{name}", words, value)
        yield CounterMetricFamily(
            "megascale_job_restarts", "Launches after the first, by whatever cause.", found["restarts"]
        )
        seconds = GaugeMetricFamily(
            "megascale_job_goodput_seconds", "The job's time by goodput phase.", labels=["phase"]
        )
        for phase, value in found["goodputSeconds"].items():
            seconds.add_metric([phase], value)
        yield seconds


class MetricsServer:
    """A background service that serves `/metrics`.

    If the port cannot be bound, a warning is logged and the driver runs without metrics.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def run(self, driver: RunningDriver) -> None:
        """Serve until cancelled."""
        registry = CollectorRegistry()
        registry.register(_JobCollector(driver.board.overview))

        async def page(_request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application()
        app.router.add_get("/metrics", page)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            log.warning("no metrics: %s", error)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
