"""All nodes of one kubelet process, which share their watches."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rest import Cluster, Refused

from kubelet.client import Client
from kubelet.node import Node, Plan
from kubelet.tokens import bound_token

Json = dict[str, Any]


class Host:
    """Watches pods, ConfigMaps and nodes of the cluster and passes changes to the nodes they belong to.

    `api_url` is where pods find the API server and `api_ca` its CA, where these are not the cluster's own: a
    test may put a proxy in between.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, memory: Path, plan: Plan, api_url: str, api_ca: str
    ) -> None:
        self.client = Client(cluster)
        address = urlsplit(api_url or cluster.url)
        self._api = (address.hostname or "127.0.0.1", address.port or 443)
        self._api_ca = api_ca
        self._folder, self._memory, self._plan = folder, memory, plan
        self.nodes: dict[str, Node] = {}
        self._config_maps: dict[tuple[str, str], Json] = {}
        self._synced = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self, names: list[str]) -> None:
        for number, name in enumerate(names):
            self.nodes[name] = Node(
                name, number, self.client, self, self._folder, self._memory / name, self._plan, self._api
            )
        self._tasks = [
            asyncio.create_task(self.client.follow("/api/v1/configmaps", self._config_map_changed)),
            asyncio.create_task(self.client.follow("/api/v1/pods", self._pod_changed)),
        ]
        await self._synced.wait()
        await asyncio.gather(*(node.start() for node in self.nodes.values()))
        self._tasks.append(asyncio.create_task(self.client.follow("/api/v1/nodes", self._node_changed)))
        for task in self._tasks:
            task.add_done_callback(_report)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(
            *self._tasks, *(node.stop() for node in self.nodes.values()), return_exceptions=True
        )
        await self.client.close()

    async def remove(self, name: str) -> None:
        """Remove a node permanently: end its processes and delete its Node object."""
        await self.nodes[name].stop()
        await self.client.insist("DELETE", f"/api/v1/nodes/{name}")

    async def _pod_changed(self, kind: str, pod: Json) -> None:
        if kind == "SYNCED":
            self._synced.set()
            return
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        if node:
            node.changed(kind, pod)

    async def _config_map_changed(self, kind: str, config_map: Json) -> None:
        if kind == "SYNCED":
            return
        meta = config_map["metadata"]
        key = (meta["namespace"], meta["name"])
        if kind == "DELETED":
            self._config_maps.pop(key, None)
            return
        self._config_maps[key] = config_map
        for node in list(self.nodes.values()):
            await node.config_map_changed(*key)

    async def _node_changed(self, kind: str, node: Json) -> None:
        known = self.nodes.get(node["metadata"]["name"]) if kind not in {"SYNCED", "DELETED"} else None
        if known:
            await known.node_changed(node)

    async def config_map(self, namespace: str, name: str) -> Json | None:
        """Return a ConfigMap from the cache, with the CA of the proxy if pods use one."""
        found = self._config_maps.get((namespace, name))
        if found and name == "kube-root-ca.crt" and self._api_ca:
            return found | {"data": {"ca.crt": self._api_ca}}
        return found

    async def secret(self, namespace: str, name: str) -> Json | None:
        try:
            return await self.client.insist("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except Refused:
            return None

    async def token(self, pod: Json, audience: str, life_s: int) -> str:
        """Return a token bound to the pod."""
        return await bound_token(self.client, pod, audience, life_s)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        task.get_loop().call_exception_handler({"message": "a watch ended", "exception": error})


def check_ca(pem: str) -> str:
    """Return the PEM text. Raises: ssl.SSLError if it is not a certificate."""
    if pem:
        ssl.create_default_context(cadata=pem)
    return pem
