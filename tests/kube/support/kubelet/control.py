"""The HTTP control port by which tests make nodes fail, and its client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import urllib3
from aiohttp import web

from kubelet.host import Host

Json = dict[str, Any]


class ControlPort:
    """`POST /nodes/NAME/stop|start|freeze|thaw|remove` and `GET /state`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        app = web.Application()
        app.router.add_get("/state", self._state)
        app.router.add_post("/nodes/{name}/{action}", self._act)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Start listening; return the URL."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _state(self, _: web.Request) -> web.Response:
        nodes = {}
        for name, node in self._host.nodes.items():
            pods = {
                worker.pod["metadata"]["name"]: {
                    "ip": worker.ip,
                    "pids": {container: one.pid for container, one in worker.running.items()},
                }
                for worker in node.workers.values()
            }
            nodes[name] = {"state": node.state, "pods": pods}
        return web.json_response(nodes)

    async def _act(self, request: web.Request) -> web.Response:
        node = self._host.nodes.get(request.match_info["name"])
        action = request.match_info["action"]
        if node is None:
            return web.json_response({"message": "no such node"}, status=404)
        if action == "stop":
            await node.stop()
        elif action == "start":
            await node.start()
        elif action == "freeze":
            node.freeze()
        elif action == "thaw":
            node.thaw()
        elif action == "remove":
            await self._host.remove(node.name)
        else:
            return web.json_response({"message": "no such action"}, status=404)
        return web.json_response({})


@dataclass(frozen=True)
class Control:
    """The client of a control port."""

    url: str

    def act(self, node: str, action: str) -> None:
        """Stop, start, freeze, thaw or remove a node, and wait until it is done."""
        answer = urllib3.request("POST", f"{self.url}/nodes/{node}/{action}", timeout=30.0, retries=False)
        if answer.status != 200:
            raise RuntimeError(f"{action} {node}: {answer.status} {answer.data.decode()}")

    def state(self) -> dict[str, Json]:
        """Return node name -> state, and its pods with address and process ids."""
        answer = urllib3.request("GET", f"{self.url}/state", timeout=10.0, retries=False)
        found: dict[str, Json] = json.loads(answer.data)
        return found
