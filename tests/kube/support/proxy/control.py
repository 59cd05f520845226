"""The proxy's HTTP control port for tests, and its client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from aiohttp import web

from proxy.forward import Listener
from proxy.rules import Rule, Rules

Json = dict[str, Any]


class ControlPort:
    """`POST /rules`, `DELETE /rules[/N]`, `GET /rules`, `POST /clients/NAME/open|close|cut`."""

    def __init__(self, rules: Rules, listeners: dict[str, Listener]) -> None:
        self._rules, self._listeners = rules, listeners
        app = web.Application()
        app.router.add_post("/rules", self._add)
        app.router.add_get("/rules", self._list)
        app.router.add_delete("/rules", self._clear)
        app.router.add_delete("/rules/{number}", self._remove)
        app.router.add_get("/clients", self._clients)
        app.router.add_post("/clients/{name}/{action}", self._act)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Start listening; return the URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _add(self, request: web.Request) -> web.Response:
        try:
            number = self._rules.add(Rule(**await request.json()))
        except (TypeError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=400)
        return web.json_response({"number": number})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(self._rules.hits())

    async def _clear(self, _: web.Request) -> web.Response:
        self._rules.clear()
        return web.json_response({})

    async def _remove(self, request: web.Request) -> web.Response:
        self._rules.remove(int(request.match_info["number"]))
        return web.json_response({})

    async def _clients(self, _: web.Request) -> web.Response:
        return web.json_response({name: one.url for name, one in self._listeners.items()})

    async def _act(self, request: web.Request) -> web.Response:
        listener = self._listeners.get(request.match_info["name"])
        action = request.match_info["action"]
        if listener is None or action not in {"open", "close", "cut"}:
            return web.json_response({"message": "no such client or action"}, status=404)
        if action == "open":
            await listener.open()
        elif action == "close":
            await listener.close()
        else:
            listener.cut()
        return web.json_response({})


@dataclass(frozen=True)
class Faults:
    """The client of a control port; `folder` is the proxy's output folder."""

    url: str
    folder: Path

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = urllib3.request(method, self.url + path, json=body, timeout=10.0, retries=False)
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data.decode()}")
        found: Json = json.loads(answer.data)
        return found

    def add(self, action: str, **rule: Any) -> int:
        """Add a rule (see `proxy.rules.Rule`); return its number."""
        return int(self._call("POST", "/rules", {"action": action} | rule)["number"])

    def remove(self, number: int) -> None:
        self._call("DELETE", f"/rules/{number}")

    def clear(self) -> None:
        self._call("DELETE", "/rules")

    def close(self, client: str) -> None:
        """Refuse the connections of a client."""
        self._call("POST", f"/clients/{client}/close")

    def open(self, client: str) -> None:
        self._call("POST", f"/clients/{client}/open")

    def cut(self, client: str) -> None:
        """Drop the open watches of a client."""
        self._call("POST", f"/clients/{client}/cut")

    def urls(self) -> dict[str, str]:
        """Return client -> URL of its listener."""
        return {name: str(url) for name, url in self._call("GET", "/clients").items()}

    @property
    def ca_pem(self) -> str:
        return (self.folder / "ca.crt").read_text()

    def trail(self) -> list[Json]:
        """Return all requests that have been answered so far."""
        return [json.loads(line) for line in (self.folder / "trail.jsonl").read_text().splitlines()]
