"""What happens while the messages that begin a stream are being written."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from megascale.agent import link as module
from megascale.agent.config import AgentConfig
from megascale.agent.link import Link
from megascale.rpc import megascale_pb2 as pb


class SlowStream:
    """A stream whose first message is written only when `go` is set; it ends when `over` is set."""

    def __init__(self) -> None:
        self.sent: list[pb.AgentMessage] = []
        self.begun, self.go, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.grown = asyncio.Event()

    def Attach(self, **_metadata: Any) -> SlowStream:  # noqa: N802
        return self

    async def write(self, message: pb.AgentMessage) -> None:
        self.begun.set()
        await self.go.wait()
        self.sent.append(message)
        self.grown.set()

    def cancel(self) -> None:
        self.over.set()

    def __aiter__(self) -> SlowStream:
        return self

    async def __anext__(self) -> pb.DriverMessage:
        await self.over.wait()
        raise StopAsyncIteration

    async def until(self, count: int) -> None:
        while len(self.sent) < count:
            self.grown.clear()
            await self.grown.wait()


async def _ignore(_message: pb.DriverMessage) -> None:
    pass


def _ranks(messages: list[pb.AgentMessage]) -> list[int]:
    return [message.exit.rank for message in messages if message.HasField("exit")]


def test_an_exit_during_the_hello_is_sent_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        config = AgentConfig.local(tmp_path, "n0")
        config.token_file.parent.mkdir(exist_ok=True)
        config.token_file.write_text("secret\n")
        config.driver_file.write_text(json.dumps({"endpoint": "127.0.0.1:1", "pid": 1, "term": 1}))
        stream = SlowStream()
        monkeypatch.setattr(module, "stub_on", lambda _channel: stream)
        link = Link(config, lambda: [pb.AgentMessage(hello=pb.Hello(pid=7))], _ignore)
        link.send(pb.AgentMessage(exit=pb.RankExit(rank=1)))  # before: a later hello tells it
        trying = asyncio.create_task(link._try_once())
        await stream.begun.wait()
        link.send(pb.AgentMessage(exit=pb.RankExit(rank=2)))
        assert not link.connected
        for _ in range(module._OUTBOX):
            link.send(pb.AgentMessage(report=pb.Report()))
        assert link._outbox.qsize() == module._OUTBOX
        stream.go.set()
        await stream.until(2)
        assert [message.WhichOneof("body") for message in stream.sent[:2]] == ["hello", "exit"]
        stream.over.set()
        assert await trying is False
        assert _ranks(stream.sent) == [2]
        link.send(pb.AgentMessage(exit=pb.RankExit(rank=3)))
        assert link._outbox.empty()

    async def bounded() -> None:
        async with asyncio.timeout(20.0):
            await main()

    asyncio.run(bounded())
