"""An asynchronous API server client with a list-and-watch loop."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from rest import Cluster, Refused

Json = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120)
_LIMIT = 500
_LONGEST_PAUSE_S = 5.0


class Client:
    """JSON requests with the credentials of a kubeconfig."""

    def __init__(self, cluster: Cluster, agent: str = "kubelet/v1.33.0") -> None:
        context = ssl.create_default_context(cadata=cluster.ca_pem)
        if cluster.certificate:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(cluster.certificate[1] + "\n" + cluster.certificate[0])
                file.flush()
                context.load_cert_chain(file.name)
        headers = {"User-Agent": agent, "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
        connector = aiohttp.TCPConnector(ssl=context, limit=32)
        self._session = aiohttp.ClientSession(cluster.url, headers=headers, connector=connector)

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Any = None, media: str = "application/json", **query: str
    ) -> Json:
        """Send a request. Raises: Refused; aiohttp.ClientError, TimeoutError if the server is unreachable."""
        raw = None if body is None else json.dumps(body)
        headers = {"Content-Type": media} if raw is not None else {}
        async with self._session.request(
            method, path, data=raw, params=query, headers=headers, timeout=_TIMEOUT
        ) as answer:
            text = await answer.text()
            found: Json = json.loads(text) if text[:1] == "{" else {"message": text}
            if answer.status >= 400:
                raise Refused(answer.status, found)
            return found

    async def insist(self, method: str, path: str, body: Any = None, media: str = "application/json") -> Json:
        """Retry until there is a final response. Raises: Refused, but not for 429 and 5xx."""
        pause = Pause()
        while True:
            try:
                return await self.request(method, path, body, media)
            except Refused as refused:
                if refused.code != 429 and refused.code < 500:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass
            await pause.wait()

    async def follow(self, path: str, change: Callable[[str, Json], Awaitable[None]], **query: str) -> None:
        """List, then watch without end; calls `change(type, object)`: ADDED per listed object, then SYNCED.

        Objects deleted while no watch was open are reported as DELETED.
        """
        known: dict[str, Json] = {}
        pause = Pause()
        while True:
            try:
                version = await self._list(path, known, change, query)
                pause.reset()
                await self._watch(path, version, known, change, query)
            except Refused as refused:
                if refused.code in {401, 403, 404}:
                    raise
                await pause.wait()
            except (aiohttp.ClientError, TimeoutError):
                await pause.wait()

    async def _list(
        self,
        path: str,
        known: dict[str, Json],
        change: Callable[[str, Json], Awaitable[None]],
        query: dict[str, str],
    ) -> str:
        seen: set[str] = set()
        token, version = "", ""
        while True:
            more = {"continue": token} if token else {}
            page = await self.request("GET", path, limit=str(_LIMIT), **query, **more)
            version = str(page["metadata"]["resourceVersion"])
            kind, api_version = page["kind"].removesuffix("List"), page["apiVersion"]
            for item in page["items"]:
                obj = {"kind": kind, "apiVersion": api_version} | item
                seen.add(obj["metadata"]["uid"])
                known[obj["metadata"]["uid"]] = obj
                await change("ADDED", obj)
            token = page["metadata"].get("continue", "")
            if not token:
                break
        for uid in known.keys() - seen:
            await change("DELETED", known.pop(uid))
        await change("SYNCED", {})
        return version

    async def _watch(
        self,
        path: str,
        version: str,
        known: dict[str, Json],
        change: Callable[[str, Json], Awaitable[None]],
        query: dict[str, str],
    ) -> None:
        """Watch, and resume after each end, until the resourceVersion has expired."""
        while True:
            params = query | {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
            async with self._session.get(path, params=params, timeout=_WATCH_TIMEOUT) as answer:
                if answer.status >= 400:
                    raise Refused(answer.status, await answer.json())
                while line := await answer.content.readline():
                    event = json.loads(line)
                    obj = event["object"]
                    if event["type"] == "ERROR":
                        return
                    version = str(obj["metadata"]["resourceVersion"])
                    if event["type"] == "DELETED":
                        known.pop(obj["metadata"]["uid"], None)
                    elif event["type"] != "BOOKMARK":
                        known[obj["metadata"]["uid"]] = obj
                    if event["type"] != "BOOKMARK":
                        await change(event["type"], obj)


class Pause:
    """Exponential back-off with jitter."""

    def __init__(self, first_s: float = 0.1, longest_s: float = _LONGEST_PAUSE_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self._first_s

    async def wait(self) -> None:
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(self._longest_s, self._next_s * 2)
