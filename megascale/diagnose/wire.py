"""JSON lines between a coordinator and the nodes it tests, opened by a mutual proof of a shared token.

The proof keeps strangers from starting checks. It does not hide or sign what follows: like NCCL and gloo,
which have no authentication at all, the checks belong on a network that is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import secrets
from pathlib import Path
from typing import Any, Final

from megascale.errors import InputError, UnreachableError

_LINE_BYTES: Final = 1 << 20
_HELLO_S: Final = 5.0


class Line:
    """One side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def local_host(self) -> str:
        """The address of this side, as the other side reaches it."""
        return str(self._writer.get_extra_info("sockname")[0])

    async def send(self, document: dict[str, Any]) -> None:
        """Send one document.

        Raises:
            ConnectionError: the other side is gone.
        """
        self._writer.write(json.dumps(document).encode() + b"\n")
        await self._writer.drain()

    async def receive(self) -> dict[str, Any]:
        """The next document.

        Raises:
            ConnectionError: the other side is gone, or sent something else.
        """
        try:
            raw = await self._reader.readline()
            document = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError as error:
            raise ConnectionError("received a line that is too long, or no JSON") from error
        if not isinstance(document, dict):
            raise ConnectionError("the connection was closed")
        return document

    async def close(self) -> None:
        """Close; never raises for a side that is gone."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


async def connect(host: str, port: int, token: bytes) -> tuple[Line, dict[str, Any]]:
    """Connect to a node and prove the token; the connection, and the node's own description.

    Raises:
        UnreachableError: no answer within 5 s, or the node refused.
    """
    try:
        async with asyncio.timeout(_HELLO_S):
            line = Line(*await asyncio.open_connection(host, port, limit=_LINE_BYTES))
            return line, await _greet(line, token)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"no answer within {_HELLO_S:g} s"
        raise UnreachableError(f"{host}:{port}: {why}") from error


async def _greet(line: Line, token: bytes) -> dict[str, Any]:
    challenge = (await line.receive()).get("nonce", "")
    nonce = secrets.token_hex(16)
    await line.send({"nonce": nonce, "proof": _proof(token, "coordinator", challenge, nonce)})
    answer = await line.receive()
    if "error" in answer:
        raise ConnectionError(str(answer["error"]))
    if not hmac.compare_digest(str(answer.get("proof", "")), _proof(token, "node", challenge, nonce)):
        raise ConnectionError("the node does not know the token")
    return answer


async def welcome(line: Line, token: bytes, hello: dict[str, Any]) -> None:
    """The node's side of `connect`.

    Raises:
        ConnectionError: the other side does not know the token, or is gone.
        TimeoutError: it said nothing for 5 s.
    """
    challenge = secrets.token_hex(16)
    async with asyncio.timeout(_HELLO_S):
        await line.send({"nonce": challenge})
        answer = await line.receive()
        nonce = str(answer.get("nonce", ""))
        if not hmac.compare_digest(
            str(answer.get("proof", "")), _proof(token, "coordinator", challenge, nonce)
        ):
            await line.send({"error": "wrong token"})
            raise ConnectionError("wrong token")
        await line.send(hello | {"proof": _proof(token, "node", challenge, nonce)})


def _proof(token: bytes, side: str, challenge: str, nonce: str) -> str:
    return hmac.new(token, f"{side} {challenge} {nonce}".encode(), hashlib.sha256).hexdigest()


def parse_address(text: str, option: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        InputError: it is something else.
    """
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InputError(f"{option} {text!r}: expected HOST:PORT, such as 10.0.0.7:7070")
    return host.strip("[]"), int(port)


def read_token(path: Path | None) -> bytes:
    """The shared token of a file, b"" without one.

    Raises:
        InputError: the file cannot be read, or is empty.
    """
    if path is None:
        return b""
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"--token-file {path}: {error.strerror}") from error
    if not token:
        raise InputError(f"--token-file {path}: is empty; make one with `openssl rand -hex 32`")
    return token


def require_token(host: str, token: bytes) -> None:
    """A node that others can reach needs a token.

    Raises:
        InputError: it has none.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not token:
        raise InputError(
            f"--serve {host}: others can reach this address; give --token-file with a shared token"
        )
