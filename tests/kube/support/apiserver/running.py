"""Runs the double: TLS, kubeconfig and controllers."""

from __future__ import annotations

import base64
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from aiohttp import web

from apiserver.authn import User
from apiserver.certs import Authority
from apiserver.controllers.run import Controllers
from apiserver.server import ApiServer, Settings

ADMIN = User("kubernetes-admin", ("system:masters",))


@dataclass(frozen=True)
class Options:
    """Options of the double. Times in seconds; both grace periods are 40 s in a real cluster."""

    port: int = 0
    bookmark_s: float = 20.0
    window: int = 20_000
    node_grace_s: float = 40.0
    orphan_grace_s: float = 40.0


class Double:
    """An async context manager that serves on loopback. `kubeconfig` is the administrator's."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self._options = options or Options()
        self._folder = folder
        self._stack = AsyncExitStack()
        self.authority = Authority()
        self.server = ApiServer(folder, Settings(self._options.bookmark_s, self._options.window))
        self.kubeconfig = folder / "kubeconfig"
        self.audit = folder / "audit.jsonl"
        self.url = ""

    async def __aenter__(self) -> Double:
        controllers = Controllers(
            self.server, self.authority.pem.decode(), self._options.node_grace_s, self._options.orphan_grace_s
        )
        runner = web.AppRunner(
            self.server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(
            runner, "127.0.0.1", self._options.port, ssl_context=self.authority.server_context(self._folder)
        )
        await site.start()
        port = runner.addresses[0][1]
        self.url = self.server.base_url = f"https://127.0.0.1:{port}"
        await self._stack.enter_async_context(controllers)
        token = self.server.tokens.add_static(ADMIN)
        write_kubeconfig(self.kubeconfig, self.url, self.authority.pem, token)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def write_kubeconfig(path: Path, url: str, ca_pem: bytes, token: str, namespace: str = "default") -> None:
    """Write a kubeconfig with one cluster and one token, atomically and readable by its owner only."""
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca_pem).decode()}
    context = {"cluster": "double", "user": "user", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "double", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "double", "context": context}],
        "current-context": "double",
    }
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(config, indent=1))
    fresh.replace(path)
