"""Binds the driver's server; for local runs, to loopback, with a token that only the run's owner can read."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
from typing import Final

import grpc

from megascale.driver.border import NODE_NAME
from megascale.driver.ports import NotAdmittedError
from megascale.errors import InputError, UnreachableError
from megascale.observe.rundir import RunDir, write_atomically
from megascale.offload import StorageThread
from megascale.rpc.connect import loopback_host

_READ_S: Final = 5.0


def bind(
    server: grpc.aio.Server, host: str, credentials: grpc.ServerCredentials | None, port: int = 0
) -> str:
    """Bind the server to `host` and return "host:port"; `port` 0 picks a free port.

    Raises:
        InputError: `credentials` is None and `host` is not a loopback address.
        UnreachableError: the address cannot be bound.
    """
    if credentials is None and not is_loopback(host):
        raise InputError(
            f"bind address {host}: without TLS only a loopback address is allowed, e.g. 127.0.0.1"
        )
    shown = f"[{host}]" if ":" in host else host
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{shown}:{port}")
        else:
            bound = server.add_secure_port(f"{shown}:{port}", credentials)
    except RuntimeError as error:
        raise UnreachableError(f"cannot listen on {shown}:{port}: {error}") from error
    return f"{shown}:{bound}"


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback IP address; False for host names, which may resolve elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LocalListener:
    """Implements `Listener` for a local run: users have the run's token, and each agent that of its node."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._token = run.ensure_token()
        self._files = StorageThread("the run folder")

    async def open(self, server: grpc.aio.Server) -> str:
        return bind(server, loopback_host(), None)

    async def announce(self, endpoint: str, term: int) -> None:
        address = {"endpoint": endpoint, "pid": os.getpid(), "term": term}
        write_atomically(self._run.driver_file, json.dumps(address))

    async def admit(self, token: str, node: str) -> None:
        expected = await self._agent_token(node) if node else self._token
        if not expected or not hmac.compare_digest(token.encode(), expected.encode()):
            whose = f"that of the agent of {node!r:.100}" if node else "this run's"
            raise NotAdmittedError(f"the token is not {whose}")

    async def _agent_token(self, node: str) -> str:
        """The token of a node's agent, "" if the fleet started none."""
        if not NODE_NAME.fullmatch(node):
            return ""
        path = self._run.agent_token_file(node)
        try:
            return (await self._files.call(path.read_text, _READ_S)).strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnreachableError) as error:
            raise NotAdmittedError(f"the token of {node} cannot be read: {error}") from error
