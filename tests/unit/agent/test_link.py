"""The agent's end of the stream, against a server that says what the test wants."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from megascale.agent import link as module
from megascale.agent.config import AgentConfig
from megascale.agent.link import Link
from megascale.errors import UnreachableError
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import METADATA_KEY, DriverAddress, Trust
from megascale.rpc.megascale_pb2_grpc import DriverServicer, add_DriverServicer_to_server


class FakeDriver(DriverServicer):
    """A driver whose streams are scripts.

    Attributes:
        script: what the next streams send, one list each; a stream whose list is over stays open until `end`.
    """

    def __init__(self) -> None:
        self.script: list[list[pb.DriverMessage]] = []
        self.got: list[pb.AgentMessage] = []
        self.tokens: list[str] = []
        self.streams = 0
        self.refuse = ""
        self.revisions: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.answers = True
        self.end = asyncio.Event()
        self.changed = asyncio.Event()

    def _note(self) -> None:
        self.changed.set()

    async def Attach(  # noqa: N802
        self, requests: AsyncIterator[pb.AgentMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DriverMessage]:
        self.streams += 1
        self._note()
        self.tokens.append(str(dict(context.invocation_metadata() or ())[METADATA_KEY]))
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, self.refuse)
        reading = asyncio.create_task(self._read(requests))
        for message in self.script.pop(0) if self.script else []:
            yield message
        await self.end.wait()
        self.end.clear()
        reading.cancel()

    async def _read(self, requests: AsyncIterator[pb.AgentMessage]) -> None:
        async for message in requests:
            self.got.append(message)
            self._note()

    async def Revision(  # noqa: N802
        self, request: pb.RevisionRequest, context: grpc.aio.ServicerContext
    ) -> pb.RevisionReply:
        assert dict(context.invocation_metadata() or ())[METADATA_KEY] == "Bearer secret"
        self.asked.append((request.node, request.revision))
        if not self.answers:
            await asyncio.Event().wait()
        if request.revision not in self.revisions:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the driver does not have that revision")
        return pb.RevisionReply(manifest=self.revisions[request.revision])


class Stage:
    """A link, the driver it finds, and what it was told to do."""

    def __init__(self, folder: Path) -> None:
        self.config = AgentConfig.local(folder, "n0")
        self.config.token_file.parent.mkdir(exist_ok=True)
        self.config.token_file.write_text("secret\n")
        self.driver = FakeDriver()
        self.handled: list[pb.DriverMessage] = []
        self.raises: Exception | None = None
        self.link = Link(self.config, self.hello, self.handle)

    def hello(self) -> list[pb.AgentMessage]:
        fence = pb.Fence(node="n0", term=self.link.highest_term)
        return [
            pb.AgentMessage(fence=fence, hello=pb.Hello(pid=7)),
            pb.AgentMessage(fence=fence, report=pb.Report()),
        ]

    async def handle(self, message: pb.DriverMessage) -> None:
        self.handled.append(message)
        self.driver.changed.set()
        if self.raises is not None:
            raise self.raises

    def announce(self, port: int, term: int = 1) -> None:
        address = {"endpoint": f"127.0.0.1:{port}", "pid": 1, "term": term}
        self.config.driver_file.write_text(json.dumps(address))

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.driver.changed.clear()
            await self.driver.changed.wait()


def play(folder: Path, scenario: Callable[[Stage, int], Awaitable[None]], *, serve: bool = True) -> None:
    async def main() -> None:
        stage = Stage(folder)
        server = grpc.aio.server()
        add_DriverServicer_to_server(stage.driver, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with asyncio.timeout(30.0):
            serving = asyncio.create_task(stage.link.serve()) if serve else None
            try:
                await scenario(stage, port)
            finally:
                if serving is not None:
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
                await server.stop(0)

    asyncio.run(main())


def of_term(term: int) -> pb.DriverMessage:
    return pb.DriverMessage(term=term, command_id=f"of {term}", kill=pb.Kill(attempt=1))


def test_a_stream_begins_with_the_greeting_and_the_token(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        assert not stage.link.connected
        stage.announce(port)
        await stage.until(lambda: len(stage.driver.got) == 2)
        assert [message.WhichOneof("body") for message in stage.driver.got] == ["hello", "report"]
        assert stage.driver.tokens == ["Bearer secret"]
        stage.link.send(pb.AgentMessage(exit=pb.RankExit(rank=3)))
        await stage.until(lambda: len(stage.driver.got) == 3)
        assert stage.driver.got[2].exit.rank == 3
        assert stage.link.connected

    play(tmp_path, scenario)


def test_a_driver_of_an_older_term_is_not_obeyed_and_its_stream_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.driver.script = [[of_term(5), of_term(5), of_term(4)], []]
        stage.announce(port, term=5)
        await stage.until(lambda: stage.driver.streams == 2)
        assert [message.term for message in stage.handled] == [5, 5]
        assert stage.link.highest_term == 5

    play(tmp_path, scenario)
    assert "a driver of term 4 speaks after one of 5" in caplog.text


def test_a_driver_of_an_older_term_is_not_even_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF_LIMIT_S", 0.01)

    async def scenario(stage: Stage, port: int) -> None:
        stage.driver.script = [[of_term(5)]]
        stage.announce(port, term=5)
        await stage.until(lambda: len(stage.handled) == 1)
        stage.announce(port, term=4)
        stage.driver.end.set()
        await stage.link.disconnected.wait()
        await asyncio.sleep(0.2)
        assert stage.driver.streams == 1
        stage.announce(port, term=6)
        await stage.until(lambda: stage.driver.streams == 2)

    play(tmp_path, scenario)


def test_the_greeting_says_which_term_was_seen(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.driver.script = [[of_term(5)], []]
        stage.announce(port, term=5)
        await stage.until(lambda: len(stage.handled) == 1 and len(stage.driver.got) == 2)
        stage.driver.end.set()
        await stage.until(lambda: len(stage.driver.got) == 4)
        assert [message.fence.term for message in stage.driver.got] == [0, 0, 5, 5]

    play(tmp_path, scenario)


def test_what_cannot_be_sent_is_dropped_and_not_sent_later(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.link.send(pb.AgentMessage(exit=pb.RankExit(rank=1)))
        stage.announce(port)
        await stage.until(lambda: len(stage.driver.got) == 2)
        stage.driver.end.set()
        await stage.link.disconnected.wait()
        stage.link.send(pb.AgentMessage(exit=pb.RankExit(rank=2)))
        await stage.until(lambda: len(stage.driver.got) == 4)
        stage.link.send(pb.AgentMessage(exit=pb.RankExit(rank=3)))
        await stage.until(lambda: len(stage.driver.got) == 5)
        assert [m.exit.rank for m in stage.driver.got if m.HasField("exit")] == [3]

    play(tmp_path, scenario)


def test_what_waits_to_be_sent_is_bounded(tmp_path: Path) -> None:
    async def scenario(stage: Stage, _port: int) -> None:
        stage.link._accepts = True
        for _ in range(module._OUTBOX + 5):
            stage.link.send(pb.AgentMessage())
        assert stage.link._outbox.qsize() == module._OUTBOX
        stage.link._drain()
        assert stage.link._outbox.empty()

    play(tmp_path, scenario, serve=False)


def test_an_error_in_an_order_ends_the_link(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.raises = KeyError("a defect")
        stage.driver.script = [[of_term(1)]]
        stage.announce(port)
        with pytest.raises(ExceptionGroup) as caught:
            await stage.link.serve()
        assert isinstance(caught.value.exceptions[0], KeyError)
        assert not stage.link.connected

    play(tmp_path, scenario, serve=False)


def test_a_refusal_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = "the driver refused the stream: "
    reasons = ["pod u1 is not the slot on n0", "the token is not good"]

    async def scenario(stage: Stage, port: int) -> None:
        for number, reason in enumerate(reasons):
            stage.driver.refuse = reason
            if number == 0:
                stage.announce(port)
            await stage.until(lambda: said + reason in caplog.text)  # noqa: B023
            more = stage.driver.streams + 2
            await stage.until(lambda: stage.driver.streams >= more)  # noqa: B023

    play(tmp_path, scenario)
    assert [caplog.text.count(said + reason) for reason in reasons] == [1, 1]


def test_a_driver_that_only_went_away_is_no_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stage: Stage, _port: int) -> None:
        stage.announce(1)  # nobody listens there
        assert await stage.link._try_once() is False
        assert not stage.link.connected

    play(tmp_path, scenario, serve=False)
    assert "refused" not in caplog.text


@pytest.mark.parametrize("script", [[], [of_term(1)]], ids=["silent", "speaks"])
def test_a_try_has_succeeded_when_the_driver_said_something(
    tmp_path: Path, script: list[pb.DriverMessage]
) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.driver.script = [list(script)]
        stage.driver.end.set()
        stage.announce(port)
        assert await stage.link._try_once() is bool(script)
        assert not stage.link.connected

    play(tmp_path, scenario, serve=False)


def test_a_driver_is_trusted_as_the_agent_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def channel_to(address: DriverAddress, trust: Trust | None) -> None:
        asked.append((address.endpoint, trust))
        raise UnreachableError("its certificate is another's")

    monkeypatch.setattr(module, "channel_to", channel_to)
    trust = Trust(tmp_path / "ca", "q.driver")

    async def scenario(stage: Stage, port: int) -> None:
        stage.announce(port)
        link = Link(dataclasses.replace(stage.config, trust=trust), stage.hello, stage.handle)
        assert await link._try_once() is False
        assert asked == [(f"127.0.0.1:{port}", trust)]

    play(tmp_path, scenario, serve=False)


@pytest.mark.parametrize(
    "error",
    [
        asyncio.InvalidStateError(),
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
    ],
    ids=["over", "broken"],
)
def test_a_stream_that_ends_while_something_is_sent_is_left_to_its_reader(
    tmp_path: Path, error: Exception
) -> None:
    class Ended:
        async def write(self, _message: pb.AgentMessage) -> None:
            raise error

    async def scenario(stage: Stage, _port: int) -> None:
        stage.link._accepts = True
        stage.link.send(pb.AgentMessage())
        await asyncio.wait_for(stage.link._write(cast(Any, Ended())), 5.0)

    play(tmp_path, scenario, serve=False)


@pytest.mark.parametrize("missing", ["driver_file", "token_file"])
def test_without_a_driver_or_a_token_there_is_nothing_to_try(tmp_path: Path, missing: str) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.announce(port)
        getattr(stage.config, missing).unlink()
        assert await stage.link._try_once() is False
        assert stage.driver.streams == 0

    play(tmp_path, scenario, serve=False)


def test_tries_are_spaced_out_with_full_jitter_until_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr(module.random, "uniform", uniform)

    async def scenario(stage: Stage, _port: int) -> None:
        came_up = iter([False] * 7 + [True, False])

        async def attempt() -> bool:
            try:
                return next(came_up)
            except StopIteration:
                raise KeyError("enough") from None

        monkeypatch.setattr(stage.link, "_try_once", attempt)
        with pytest.raises(KeyError):
            await stage.link.serve()

    play(tmp_path, scenario, serve=False)
    assert bounds == [(0, s) for s in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.1, 0.2)]


def test_contact_is_noted_with_every_message(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        stage.link.last_contact = -1.0
        stage.driver.script = [[of_term(1)]]
        stage.announce(port)
        await stage.until(lambda: len(stage.handled) == 1)
        assert stage.link.last_contact > 0

    play(tmp_path, scenario)


def test_a_revision_comes_from_the_driver_of_the_stream(tmp_path: Path) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        with pytest.raises(UnreachableError, match="revision r1 of the manifest: no driver is connected"):
            await stage.link.fetch_revision("r1")
        stage.driver.revisions["r1"] = "{}"
        stage.announce(port)
        await stage.until(lambda: len(stage.driver.got) == 2)
        assert await stage.link.fetch_revision("r1") == "{}"
        assert stage.driver.asked == [("n0", "r1")]
        with pytest.raises(
            UnreachableError, match="revision r2 of the manifest: the driver does not have that"
        ):
            await stage.link.fetch_revision("r2")
        stage.driver.end.set()
        await stage.link.disconnected.wait()
        with pytest.raises(UnreachableError, match="no driver is connected"):
            await stage.link.fetch_revision("r1")

    play(tmp_path, scenario)


def test_a_driver_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REVISION_S", 0.2)

    async def scenario(stage: Stage, port: int) -> None:
        stage.driver.answers = False
        stage.announce(port)
        await stage.until(lambda: len(stage.driver.got) == 2)
        with pytest.raises(UnreachableError, match=r"(?i)revision r1 of the manifest: .*deadline"):
            await asyncio.wait_for(stage.link.fetch_revision("r1"), 10.0)
        assert stage.driver.asked == [("n0", "r1")]

    play(tmp_path, scenario)


def test_a_call_that_grpc_cancels_is_an_answer_and_a_task_that_is_cancelled_is_not(tmp_path: Path) -> None:
    class Cancelled:
        async def Revision(self, *_what: object, **_how: object) -> None:  # noqa: N802
            raise asyncio.CancelledError

    class Hangs:
        async def Revision(self, *_what: object, **_how: object) -> None:  # noqa: N802
            await asyncio.Event().wait()

    async def scenario(stage: Stage, _port: int) -> None:
        stage.link._call = Cancelled(), ()  # type: ignore[assignment]
        with pytest.raises(UnreachableError, match="the stream to the driver ended"):
            await stage.link.fetch_revision("r1")
        stage.link._call = Hangs(), ()  # type: ignore[assignment]
        task = asyncio.create_task(stage.link.fetch_revision("r1"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(tmp_path, scenario, serve=False)
