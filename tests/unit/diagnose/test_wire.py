"""The connection between a coordinator and a node: proof of the token, bounds, addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from megascale.diagnose.wire import Line, connect, parse_address, read_token, require_token, welcome
from megascale.errors import InputError, UnreachableError


async def with_node(token: bytes, use: Callable[[int], Awaitable[None]]) -> list[str]:
    """Run `use` against a node that welcomes with `token`; what refused the other side."""
    refused: list[str] = []

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        try:
            await welcome(line, token, {"node": "n1"})
        except ConnectionError as error:
            refused.append(str(error))
        await line.close()

    async with await asyncio.start_server(session, "127.0.0.1", 0) as server:
        await use(server.sockets[0].getsockname()[1])
    return refused


def test_both_sides_know_the_token():
    async def use(port: int) -> None:
        line, hello = await connect("127.0.0.1", port, b"secret")
        assert hello["node"] == "n1"
        await line.close()

    assert asyncio.run(with_node(b"secret", use)) == []


def test_a_coordinator_without_the_token_is_refused():
    async def use(port: int) -> None:
        with pytest.raises(UnreachableError, match="wrong token"):
            await connect("127.0.0.1", port, b"guess")

    assert asyncio.run(with_node(b"secret", use)) == ["wrong token"]


def test_a_node_that_does_not_know_the_token_is_refused():
    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        await line.send({"nonce": "x"})
        answer = await line.receive()
        await line.send({"node": "n1", "proof": answer["proof"]})
        await line.close()

    async def main() -> None:
        async with await asyncio.start_server(impostor, "127.0.0.1", 0) as server:
            with pytest.raises(UnreachableError, match="does not know the token"):
                await connect("127.0.0.1", server.sockets[0].getsockname()[1], b"secret")

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", b"no json\n", b"[1]\n", b'{"cut": '])
def test_anything_else_is_a_lost_connection(sent):
    async def rude(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(rude, "127.0.0.1", 0) as server:
            with pytest.raises(UnreachableError):
                await connect("127.0.0.1", server.sockets[0].getsockname()[1], b"")

    asyncio.run(main())


def test_addresses():
    assert parse_address(" 10.0.0.7:7070", "--nodes") == ("10.0.0.7", 7070)
    assert parse_address("[fd00::1]:80", "--nodes") == ("fd00::1", 80)
    for text in ("", "7070", "host:", "host:x", "host:70707", ":80"):
        with pytest.raises(InputError, match="expected HOST:PORT"):
            parse_address(text, "--nodes")


def test_a_node_that_others_reach_needs_a_token(tmp_path: Path):
    for host in ("127.0.0.1", "::1", "localhost"):
        require_token(host, b"")
    require_token("10.0.0.7", b"secret")
    for host in ("0.0.0.0", "10.0.0.7", "node-7", ""):
        with pytest.raises(InputError, match="--token-file"):
            require_token(host, b"")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_token(tmp_path / "empty")
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "absent")
