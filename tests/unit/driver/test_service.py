"""The gRPC face of a driver, over a real channel; the driver behind it is the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from megascale.driver import service as module
from megascale.driver.links import AgentLink
from megascale.driver.listener import LocalListener, bind, is_loopback
from megascale.driver.ports import NotAdmittedError
from megascale.driver.service import Service, _host
from megascale.errors import UnreachableError
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import bearer
from megascale.rpc.megascale_pb2_grpc import DriverStub, add_DriverServicer_to_server

HELLO = pb.AgentMessage(fence=pb.Fence(node="n0", incarnation="a"), hello=pb.Hello(pid=1, pod="q-0-0"))


class Driver:
    """Takes everything in, and keeps it."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.accepts, self.links, self.got, self.detached = (
            True,
            list[AgentLink](),
            list[Any](),
            list[AgentLink](),
        )
        self.received_on: list[AgentLink] = []
        self.changed = asyncio.Event()
        self.raises: Exception | None = None
        self.board = self
        self.revisions = self

    def document_text(self) -> bytes:
        return b'{"job": "j"}'

    def text(self, revision: str) -> str | None:
        return "{}" if revision == "r1" else None

    def command(self, request: pb.CommandRequest) -> tuple[bool, str]:
        return request.command == "save", f"{request.command} was heard"

    def change_manifest(self, text: str) -> tuple[bool, str]:
        return text == "{}", f"{text} was read"

    def attach(self, link: AgentLink, message: pb.AgentMessage) -> bool:
        self.links.append(link)
        self.got.append(message)
        return self.accepts

    def receive(self, link: AgentLink, message: pb.AgentMessage) -> None:
        if self.raises is not None:
            raise self.raises
        self.got.append(message)
        self.received_on.append(link)
        self.changed.set()

    def detach(self, link: AgentLink) -> None:
        self.detached.append(link)
        link.close()


class Listener:
    """Admits one token."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def admit(self, token: str, node: str) -> None:
        self.asked.append((token, node))
        if token != "good":
            raise NotAdmittedError(f"the token {token!r} is not good")


def play(scenario: Callable[[DriverStub, Driver, Listener], Awaitable[None]]) -> None:
    async def main() -> None:
        driver, listener = Driver(), Listener()
        server = grpc.aio.server()
        add_DriverServicer_to_server(  # type: ignore[no-untyped-call]
            Service(cast(Any, driver), cast(Any, listener)), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with asyncio.timeout(30.0), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await scenario(DriverStub(channel), driver, listener)  # type: ignore[no-untyped-call]
        await server.stop(0)

    asyncio.run(main())


GOOD = bearer("good")


def test_a_stream_is_attached_fed_and_detached() -> None:
    async def scenario(stub: DriverStub, driver: Driver, listener: Listener) -> None:
        call = stub.Attach(metadata=GOOD)
        await call.write(HELLO)
        await call.write(pb.AgentMessage(exit=pb.RankExit(rank=3)))
        await driver.changed.wait()
        (link,) = driver.links
        assert (link.node, link.incarnation, link.pod, link.address) == ("n0", "a", "q-0-0", "127.0.0.1")
        assert driver.received_on == [link]
        assert listener.asked == [("good", "n0")]
        assert [message.WhichOneof("body") for message in driver.got] == ["hello", "exit"]
        link.send(pb.DriverMessage(term=7))
        assert (await call.read()).term == 7
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert driver.detached == [link]

    play(scenario)


def test_an_agent_says_at_which_address_it_is_reached() -> None:
    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        hello = pb.AgentMessage(fence=pb.Fence(node="n0"), hello=pb.Hello(host="10.0.0.7"))
        call = stub.Attach(metadata=GOOD)
        await call.write(hello)
        await call.write(pb.AgentMessage())
        await driver.changed.wait()
        assert driver.links[0].address == "10.0.0.7"
        call.cancel()

    play(scenario)


def test_an_agent_that_is_not_accepted_is_let_go() -> None:
    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        driver.accepts = False
        call = stub.Attach(metadata=GOOD)
        await call.write(HELLO)
        assert await call.read() is grpc.aio.EOF
        assert driver.detached == driver.links

    play(scenario)


@pytest.mark.parametrize(
    "first",
    [
        pb.AgentMessage(fence=pb.Fence(node="n0"), report=pb.Report()),
        pb.AgentMessage(hello=pb.Hello(pid=1)),
        None,
    ],
    ids=["no-hello", "no-node", "nothing"],
)
def test_a_stream_that_does_not_begin_with_hello_is_refused(
    first: pb.AgentMessage | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HELLO_S", 0.1)

    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        call = stub.Attach(metadata=GOOD)
        if first is not None:
            await call.write(first)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "begins with hello" in str(await call.details())
        assert driver.links == []

    play(scenario)


def test_callers_that_are_not_admitted_get_nothing() -> None:
    bad = bearer("bad")

    async def scenario(stub: DriverStub, driver: Driver, listener: Listener) -> None:
        call = stub.Attach(metadata=bad)
        await call.write(HELLO)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call.details() == "the token 'bad' is not good"
        calls = (
            stub.Command(pb.CommandRequest(command="save"), metadata=bad),
            stub.Revision(pb.RevisionRequest(node="n0", revision="r1"), metadata=bad),
            stub.Command(pb.CommandRequest(command="save")),
        )
        for one in calls:
            assert await one.code() is grpc.StatusCode.UNAUTHENTICATED
        watch = stub.Watch(pb.WatchRequest(), metadata=bad)
        assert await watch.code() is grpc.StatusCode.UNAUTHENTICATED
        assert driver.links == []
        # calls are under way at the same time: they come in any order
        asked = [("bad", "n0"), ("bad", ""), ("bad", "n0"), ("", ""), ("bad", "")]
        assert sorted(listener.asked) == sorted(asked)

    play(scenario)


def test_an_error_while_a_message_is_taken_in_ends_the_stream() -> None:
    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        driver.raises = KeyError("a defect")
        call = stub.Attach(metadata=GOOD)
        await call.write(HELLO)
        await call.write(pb.AgentMessage())
        assert await call.code() is grpc.StatusCode.UNKNOWN
        assert driver.detached == driver.links

    play(scenario)


def test_an_error_while_orders_are_sent_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_link: AgentLink, _context: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(module, "_forward", broken)

    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        call = stub.Attach(metadata=GOOD)
        await call.write(HELLO)
        assert await call.code() is grpc.StatusCode.UNKNOWN
        assert driver.detached == driver.links

    play(scenario)


def test_commands_and_revisions_are_answered() -> None:
    async def scenario(stub: DriverStub, _driver: Driver, _listener: Listener) -> None:
        reply = await stub.Command(pb.CommandRequest(command="save"), metadata=GOOD)
        assert (reply.ok, reply.message) == (True, "save was heard")
        reply = await stub.Command(pb.CommandRequest(command="dance"), metadata=GOOD)
        assert not reply.ok
        reply = await stub.ChangeManifest(pb.ManifestRequest(manifest="{}"), metadata=GOOD)
        assert (reply.ok, reply.message) == (True, "{} was read")
        refused = stub.ChangeManifest(pb.ManifestRequest(manifest="{}"))
        assert await refused.code() is grpc.StatusCode.UNAUTHENTICATED
        found = await stub.Revision(pb.RevisionRequest(node="n0", revision="r1"), metadata=GOOD)
        assert found.manifest == "{}"
        missing = stub.Revision(pb.RevisionRequest(node="n0", revision="r2"), metadata=GOOD)
        assert await missing.code() is grpc.StatusCode.NOT_FOUND
        assert await missing.details() == "the driver does not have that revision"

    play(scenario)


def test_whoever_watches_sees_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_S", 0.01)

    async def scenario(stub: DriverStub, driver: Driver, _listener: Listener) -> None:
        documents = aiter(stub.Watch(pb.WatchRequest(), metadata=GOOD))
        for _ in range(3):
            assert json.loads((await anext(documents)).document) == {"job": "j"}
        driver.done.set()
        rest = [status async for status in cast(AsyncIterator[pb.JobStatus], documents)]
        assert 1 <= len(rest) <= 3

    play(scenario)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[fe80::1]:5000", "[fe80::1]"),
        ("unix:", "127.0.0.1"),
    ],
)
def test_the_address_of_a_peer(peer: str, host: str) -> None:
    assert _host(peer) == host


def test_people_have_the_run_s_token_and_each_agent_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = RunDir(tmp_path)
        listener = LocalListener(run)
        token = run.token_file.read_text()
        await listener.admit(token, "")
        first, other = run.renew_agent_token("n0"), run.renew_agent_token("n1")
        await listener.admit(first, "n0")
        await listener.admit(other, "n1")
        for given, node in (
            (token, "n0"),
            (other, "n0"),
            (first, ""),
            ("", "n2"),
            (token, "../token"),
            ("é", "n0"),
        ):
            with pytest.raises(NotAdmittedError, match="the token is not"):
                await listener.admit(given, node)
        renewed = run.renew_agent_token("n0")
        await listener.admit(renewed, "n0")
        with pytest.raises(NotAdmittedError, match="the token is not that of the agent of 'n0'"):
            await listener.admit(first, "n0")
        assert run.agent_token_file("n0").stat().st_mode & 0o777 == 0o600
        with pytest.raises(NotAdmittedError, match="the token is not this run's"):
            await listener.admit(token + "x", "")
        server = grpc.aio.server()
        endpoint = await listener.open(server)
        assert endpoint.startswith("127.0.0.1:")
        await listener.announce(endpoint, 7)
        await server.stop(0)
        said = json.loads(run.driver_file.read_text())
        assert (said["endpoint"], said["term"]) == (endpoint, 7)

    asyncio.run(scenario())


def test_addresses_that_only_this_machine_reaches() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "localhost", "::")] == [False] * 4


def test_an_address_that_is_taken_is_said() -> None:
    async def scenario() -> None:
        first, second, third = (grpc.aio.server(options=(("grpc.so_reuseport", 0),)) for _ in range(3))
        try:
            port = int(bind(first, "127.0.0.1", None).rpartition(":")[2])
            await first.start()
            with pytest.raises(UnreachableError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
                bind(second, "127.0.0.1", None, port)
            assert bind(third, "::1", None).startswith("[::1]:")
        finally:
            for server in (first, second, third):
                await server.stop(0)

    asyncio.run(scenario())
