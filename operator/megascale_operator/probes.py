"""HTTP endpoints: /metrics on one port, /healthz and /readyz on another."""

from __future__ import annotations

from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from megascale_operator.metrics import Metrics

ANY: Final = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus connect from outside the pod


class Probed(Protocol):
    """The process that the endpoints report on."""

    metrics: Metrics

    @property
    def ready(self) -> bool: ...

    @property
    def stuck(self) -> list[str]: ...


class Probes:
    """Serves /metrics, /healthz (200 while no reconcile is stuck) and /readyz (200 once informers synced)."""

    def __init__(self, subject: Probed, address: str, metrics_port: int, health_port: int) -> None:
        self._subject, self._address = subject, address
        self._ports = (metrics_port, health_port)
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        """Start listening; port 0 selects a free port."""
        metrics, health = web.Application(), web.Application()
        metrics.router.add_get("/metrics", self._metrics)
        health.router.add_get("/healthz", self._healthz)
        health.router.add_get("/readyz", self._readyz)
        for app, port in zip((metrics, health), self._ports, strict=True):
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, self._address, port).start()
            self._runners.append(runner)

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    @property
    def addresses(self) -> list[int]:
        """The listening ports: metrics, health."""
        return [int(runner.addresses[0][1]) for runner in self._runners]

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._subject.metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _request: web.Request) -> web.Response:
        stuck = self._subject.stuck
        return web.Response(text="\n".join(stuck) or "ok", status=500 if stuck else 200)

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready = self._subject.ready
        return web.Response(text="ok" if ready else "still listing objects", status=200 if ready else 503)
