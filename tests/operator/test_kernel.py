"""Client, fence and informer against an API server over HTTPS: pages, watches, 410, a paused server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from megascale_operator.kube.client import RestApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.config import load_configuration
from megascale_operator.kube.election import Fence
from megascale_operator.kube.errors import (
    AlreadyExistsError,
    ApiUnreachableError,
    ConflictError,
    NotFoundError,
    NotLeaderError,
    RefusedError,
)
from megascale_operator.kube.informer import Informer
from megascale_operator.kube.resources import CONFIG_MAPS, NODES, PODS, Obj
from programs import Program

from megascale.errors import InputError


@dataclass(frozen=True)
class Projected:
    version: str
    name: str
    value: str


def project(obj: Obj) -> Projected:
    return Projected(
        obj["metadata"]["resourceVersion"], obj["metadata"]["name"], (obj.get("data") or {}).get("value", "")
    )


def config_map(name: str, value: str = "", **labels: str) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels},
            "data": {"value": value}}  # fmt: skip


def with_api(kubeconfig: Path, main: Callable[[RestApi], Awaitable[Any]]) -> None:
    async def run() -> None:
        async with await RestApi.connect(kubeconfig) as api:
            await main(api)

    asyncio.run(run())


class Changes:
    """Collects an informer's changes, for tests to wait for."""

    def __init__(self, informer: Informer[Projected]) -> None:
        self.seen: list[tuple[str, str]] = []
        self._reported = asyncio.Event()
        informer.on_change(self._take)

    def _take(self, before: Projected | None, after: Projected | None) -> None:
        record = after or before
        assert record is not None
        self.seen.append(("gone" if after is None else "new" if before is None else "changed", record.name))
        self._reported.set()

    async def of(self, what: str, name: str) -> None:
        async with asyncio.timeout(20):
            while (what, name) not in self.seen:
                self._reported.clear()
                await self._reported.wait()


def test_error_responses_raise_their_exception(kubeconfig: Path) -> None:
    async def main(api: RestApi) -> None:
        with pytest.raises(NotFoundError):
            await api.get(CONFIG_MAPS, "none", "default")
        await api.create(CONFIG_MAPS, config_map("twice"), "default")
        with pytest.raises(AlreadyExistsError):
            await api.create(CONFIG_MAPS, config_map("twice"), "default")
        found = await api.get(CONFIG_MAPS, "twice", "default")
        await api.patch(CONFIG_MAPS, "twice", {"data": {"value": "b"}}, "default")
        with pytest.raises(ConflictError):
            await api.replace(CONFIG_MAPS, found, "default")
        await api.delete(CONFIG_MAPS, "twice", "default", uid=found["metadata"]["uid"])
        await api.delete(CONFIG_MAPS, "twice", "default")
        with pytest.raises(NotFoundError):
            await api.get(CONFIG_MAPS, "twice", "default")

    with_api(kubeconfig, main)


def test_a_json_patch_that_tests_the_version_loses_against_a_later_write(kubeconfig: Path) -> None:
    async def main(api: RestApi) -> None:
        node = await api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n-patch"}})
        version = node["metadata"]["resourceVersion"]
        await api.patch(NODES, "n-patch", {"metadata": {"labels": {"a": "b"}}})
        operations = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/spec/unschedulable", "value": True},
        ]
        with pytest.raises((ConflictError, RefusedError)):
            await api.patch(NODES, "n-patch", operations, kind="json")
        operations[0]["value"] = (await api.get(NODES, "n-patch"))["metadata"]["resourceVersion"]
        patched = await api.patch(NODES, "n-patch", operations, kind="json")
        assert patched["spec"]["unschedulable"] is True

    with_api(kubeconfig, main)


def test_apply_twice_changes_once(kubeconfig: Path) -> None:
    async def main(api: RestApi) -> None:
        body = config_map("applied", "a")
        first = await api.apply(CONFIG_MAPS, body, "default", manager="megascale-operator")
        second = await api.apply(CONFIG_MAPS, body, "default", manager="megascale-operator")
        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]

    with_api(kubeconfig, main)


def test_informer_pages_follows_and_survives_a_410(
    kubeconfig: Path, server: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megascale_operator.kube.informer.PAGE", 7)

    async def main(api: RestApi) -> None:
        for index in range(20):
            await api.create(CONFIG_MAPS, config_map(f"many-{index}", "0", set="many"), "default")
        informer = Informer(
            api, CONFIG_MAPS, project, Clock(), selector="set=many", owner=lambda one: one.value
        )
        news = Changes(informer)
        running = asyncio.create_task(informer.run())
        await informer.synced.wait()
        assert len(informer.records) == 20
        assert len(informer.of("0")) == 20
        await api.patch(CONFIG_MAPS, "many-3", {"data": {"value": "1"}}, "default")
        await news.of("changed", "many-3")
        assert [one.name for one in informer.of("1")] == ["many-3"]
        await api.delete(CONFIG_MAPS, "many-4", "default")
        await news.of("gone", "many-4")
        server.signal(signal.SIGUSR1)
        await api.create(CONFIG_MAPS, config_map("many-99", "0", set="many"), "default")
        await news.of("new", "many-99")
        assert len(informer.records) == 20
        running.cancel()

    with_api(kubeconfig, main)


def test_a_write_is_cached_at_once_and_older_events_do_not_revert_it(kubeconfig: Path) -> None:
    async def main(api: RestApi) -> None:
        informer = Informer(api, CONFIG_MAPS, project, Clock(), namespace="default")
        first = await api.create(CONFIG_MAPS, config_map("mine", "1"), "default")
        second = await api.patch(CONFIG_MAPS, "mine", {"data": {"value": "2"}}, "default")
        informer.absorb(second)
        informer.absorb(first)
        record = informer.get("mine", "default")
        assert record is not None
        assert record.value == "2"

    with_api(kubeconfig, main)


def test_a_stopped_server_is_unreachable_in_bounded_time(kubeconfig: Path, server: Program) -> None:
    async def main() -> None:
        api = RestApi(await load_configuration(kubeconfig), timeout_s=0.5, tries=2)
        server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(ApiUnreachableError, match=r"no response within 0\.5 s"):
                    await api.get(PODS, "any", "default")
        finally:
            server.signal(signal.SIGCONT)
            await api.close()

    asyncio.run(main())


def test_no_write_is_sent_once_the_fence_is_closed(kubeconfig: Path, server: Program) -> None:
    """Not even a write that passed the fence and then waited for its connection."""

    async def main() -> None:
        now = 100.0
        fence = Fence(Clock(lambda: now))
        api = RestApi(await load_configuration(kubeconfig), guard=fence.guard)
        with pytest.raises(NotLeaderError):
            await api.create(CONFIG_MAPS, config_map("fenced-0"), "default")
        fence.open_until(105.0)
        server.signal(signal.SIGSTOP)
        writing = asyncio.create_task(api.create(CONFIG_MAPS, config_map("fenced-1"), "default"))
        await asyncio.sleep(0.3)
        now = 106.0
        server.signal(signal.SIGCONT)
        with pytest.raises(NotLeaderError):
            await writing
        with pytest.raises(NotFoundError):
            await api.get(CONFIG_MAPS, "fenced-1", "default")
        fence.open_until(110.0)
        await api.create(CONFIG_MAPS, config_map("fenced-2"), "default")
        await api.close()

    asyncio.run(main())


def test_the_error_of_a_missing_kubeconfig_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing-here"):
        asyncio.run(load_configuration(tmp_path / "nothing-here"))
    with pytest.raises(InputError, match="--kubeconfig"):
        asyncio.run(load_configuration(None))
