"""The control port of simulated nodes, and its client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import urllib3
from aiohttp import web

from simulated.slots import Slots

Json = dict[str, Any]


class ControlPort:
    """`POST /racks/N/fail`, `GET /counts`."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        app = web.Application()
        app.router.add_get("/counts", self._counts)
        app.router.add_post("/racks/{rack}/fail", self._fail)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Start listening; return the URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _counts(self, _: web.Request) -> web.Response:
        return web.json_response(self._slots.counts())

    async def _fail(self, request: web.Request) -> web.Response:
        return web.json_response({"lost": self._slots.fail(int(request.match_info["rack"]))})


@dataclass(frozen=True)
class Racks:
    """The client of a control port."""

    url: str

    def fail(self, rack: int) -> list[str]:
        """Silence all nodes of a rack; return their names."""
        answer = urllib3.request("POST", f"{self.url}/racks/{rack}/fail", timeout=10.0, retries=False)
        lost: list[str] = json.loads(answer.data)["lost"]
        return lost

    def counts(self) -> Json:
        answer = urllib3.request("GET", f"{self.url}/counts", timeout=10.0, retries=False)
        found: Json = json.loads(answer.data)
        return found
