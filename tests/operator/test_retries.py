"""Retries and timeouts of the client when the server is overloaded, fails or hangs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from megascale_operator.kube.client import RestApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import ApiError, ApiUnreachableError, GoneError, OverloadedError
from megascale_operator.kube.informer import Informer
from megascale_operator.kube.resources import CONFIG_MAPS

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY = {"metadata": {"name": "x"}}


def with_server(tmp_path: Path, answer: Answer, main: Callable[[RestApi], Awaitable[Any]]) -> None:
    """Run `main` against a server that handles every request with `answer`."""

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
        }
        (tmp_path / "token").write_text("t")
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        try:
            async with await RestApi.connect(path) as api:
                await main(api)
        finally:
            await runner.cleanup()

    asyncio.run(run())


class StatusSequence:
    """Responds with each status in turn, then with success."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.statuses, self.headers = list(statuses), headers
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.method)
        status = self.statuses.pop(0) if self.statuses else 200
        headers = (
            {name.replace("_", "-"): value for name, value in self.headers.items()} if status != 200 else {}
        )
        return web.json_response({"kind": "Status", "metadata": {}}, status=status, headers=headers)


def test_a_rejected_write_is_retried_after_retry_after(tmp_path: Path) -> None:
    server = StatusSequence(429, Retry_After="1")

    async def main(api: RestApi) -> None:
        start = time.monotonic()
        await api.create(CONFIG_MAPS, BODY, "default")
        assert time.monotonic() - start >= 1.0

    with_server(tmp_path, server.answer, main)
    assert server.asked == ["POST", "POST"]


def test_a_failed_write_is_not_retried(tmp_path: Path) -> None:
    server = StatusSequence(500)

    async def main(api: RestApi) -> None:
        with pytest.raises(OverloadedError):
            await api.create(CONFIG_MAPS, BODY, "default")

    with_server(tmp_path, server.answer, main)
    assert server.asked == ["POST"]


def test_reads_are_retried_a_bounded_number_of_times(tmp_path: Path) -> None:
    server = StatusSequence(500, 503)

    async def main(api: RestApi) -> None:
        await api.get(CONFIG_MAPS, "x", "default")
        server.statuses = [500] * 10
        with pytest.raises(OverloadedError):
            await api.get(CONFIG_MAPS, "x", "default")

    with_server(tmp_path, server.answer, main)
    assert server.asked == ["GET"] * 7


def test_responses_that_are_not_json_raise_errors(tmp_path: Path) -> None:
    async def main(api: RestApi) -> None:
        with pytest.raises(ApiError, match="returned HTTP 418"):
            await api.create(CONFIG_MAPS, BODY, "default")

    async def teapot(_request: web.Request) -> web.Response:
        return web.Response(status=418, text="short and stout")

    with_server(tmp_path, teapot, main)


def test_a_silent_watch_is_broken_and_an_error_in_it_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megascale_operator.kube.client.SILENCE_S", 0.3)
    lines = [{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}]

    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        await asyncio.sleep(30)
        return response

    async def main(api: RestApi) -> None:
        seen: list[str] = []

        async def follow() -> None:
            async with api.watch(CONFIG_MAPS, since="1") as events:
                async for event in events:
                    seen.append(event.type)  # noqa: PERF401 - the loop ends by an error

        start = time.monotonic()
        with pytest.raises(ApiUnreachableError):
            await follow()
        assert seen == ["BOOKMARK"]
        assert time.monotonic() - start < 5
        lines.append({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}})
        with pytest.raises(GoneError, match="too old"):
            await follow()

    with_server(tmp_path, silent, main)


def test_the_informer_backs_off_from_a_server_that_ends_every_watch_at_once(tmp_path: Path) -> None:
    asked: list[float] = []

    async def hasty(request: web.Request) -> web.Response:
        if "watch" in request.query:
            asked.append(time.monotonic())
            return web.Response(text="")
        return web.json_response({"kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": []})

    async def main(api: RestApi) -> None:
        informer: Informer[Any] = Informer(api, CONFIG_MAPS, lambda _object: None, Clock())
        following = asyncio.create_task(informer.run())
        await asyncio.sleep(3.0)
        following.cancel()

    with_server(tmp_path, hasty, main)
    assert 2 <= len(asked) <= 5
    assert asked[1] - asked[0] >= 0.5


def test_a_rotated_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megascale_operator.kube.config.REFRESH_S", 0.0)
    tokens: list[str] = []

    async def note(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization", ""))
        return web.json_response({"metadata": {}})

    async def main(api: RestApi) -> None:
        await api.get(CONFIG_MAPS, "x", "default")
        (tmp_path / "token").write_text("rotated")
        await api.get(CONFIG_MAPS, "x", "default")

    with_server(tmp_path, note, main)
    assert tokens == ["Bearer t", "Bearer rotated"]
