"""Watches of the double: resume, bookmarks, selectors, 410."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from apiserver.reads import Reader
from apiserver.resources import Resource
from apiserver.store import Store
from objects import config_map, fresh
from programs import api_server
from rest import Cluster, Refused, Rest

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


def test_a_watch_resumes_where_a_list_ended(api: Rest) -> None:
    name = fresh("watched")
    version = api.get(CONFIGMAPS)["metadata"]["resourceVersion"]
    api.create(CONFIGMAPS, config_map(name, a="1"))
    api.merge(f"{CONFIGMAPS}/{name}", {"data": {"a": "2"}})
    api.delete(f"{CONFIGMAPS}/{name}")
    with api.watch(CONFIGMAPS, resourceVersion=version) as events:
        seen = [next(events) for _ in range(3)]
    assert [one["type"] for one in seen] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(one["object"]["metadata"]["resourceVersion"]) for one in seen]
    assert versions == sorted(versions)
    with api.watch(CONFIGMAPS, resourceVersion=versions[1]) as events:
        assert next(events)["type"] == "DELETED"


def test_an_object_that_leaves_the_selector_is_deleted_for_the_watch(api: Rest) -> None:
    name = fresh("moving")
    version = api.get(CONFIGMAPS)["metadata"]["resourceVersion"]
    with api.watch(CONFIGMAPS, resourceVersion=version, labelSelector="colour=red") as events:
        api.create(CONFIGMAPS, config_map(name))
        api.merge(f"{CONFIGMAPS}/{name}", {"metadata": {"labels": {"colour": "red"}}})
        api.merge(f"{CONFIGMAPS}/{name}", {"metadata": {"labels": {"colour": "blue"}}})
        seen = [next(events) for _ in range(2)]
    assert [one["type"] for one in seen] == ["ADDED", "DELETED"]
    assert seen[1]["object"]["metadata"]["labels"] == {"colour": "red"}


def test_bookmarks_advance_a_quiet_watch(api: Rest) -> None:
    api.create(CONFIGMAPS, config_map(fresh("noise")))
    version = api.get(CONFIGMAPS)["metadata"]["resourceVersion"]
    query = {"resourceVersion": version, "allowWatchBookmarks": True}
    with api.watch(CONFIGMAPS, fieldSelector=f"metadata.name={fresh('none')}", **query) as events:
        bookmark = next(events)
    assert bookmark["type"] == "BOOKMARK"
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) >= int(version)


def test_a_bookmark_does_not_skip_changes_that_were_not_delivered() -> None:
    """An object is made while the last lines are written and the watch is over."""
    store = Store()
    maps = Resource("", "v1", "ConfigMap", "configmaps", "configmap", namespaced=True)
    version = store.version
    made: list[str] = []

    def make(name: str) -> None:
        store.put(maps.key, {"metadata": {"namespace": "default", "name": name}})
        made.append(name)

    async def watch(version: int, life_s: float) -> list[Any]:
        query = {
            "resourceVersion": str(version),
            "timeoutSeconds": str(life_s),
            "allowWatchBookmarks": "true",
        }
        seen: list[Any] = []
        async for lines in Reader(store, 0.01).watch(maps, "", query, lambda one: one.json):
            if len(made) == 1:
                make("second")
                await asyncio.sleep(life_s)
            seen += [json.loads(line) for line in lines.splitlines()]
        return seen

    make("first")
    seen = asyncio.run(watch(version, 0.05))
    assert seen[-1]["type"] == "BOOKMARK"
    last = int(seen[-1]["object"]["metadata"]["resourceVersion"])
    seen += asyncio.run(watch(last, 0.05))
    assert [one["object"]["metadata"]["name"] for one in seen if one["type"] == "ADDED"] == made


def test_a_kind_that_never_changed_has_no_bookmarks(api: Rest) -> None:
    version = api.get("/api/v1/nodes")["metadata"]["resourceVersion"]
    query = {"resourceVersion": version, "allowWatchBookmarks": True, "timeoutSeconds": 2}
    with api.watch("/api/v1/nodes", **query) as events:
        assert list(events) == []


def test_a_watch_ends_at_its_timeout(api: Rest) -> None:
    version = api.get("/api/v1/nodes")["metadata"]["resourceVersion"]
    with api.watch("/api/v1/nodes", resourceVersion=version, timeoutSeconds=1) as events:
        assert list(events) == []


def test_field_selectors_and_unsupported_ones(api: Rest) -> None:
    name = fresh("single")
    api.create(CONFIGMAPS, config_map(name))
    found = api.get(CONFIGMAPS, fieldSelector=f"metadata.name={name}")["items"]
    assert [one["metadata"]["name"] for one in found] == [name]
    with pytest.raises(Refused, match="field label not supported"):
        api.get(CONFIGMAPS, fieldSelector="data.a=1")


def test_after_compaction_an_old_version_is_gone(tmp_path: Path) -> None:
    with api_server(tmp_path, "--bookmark-seconds", "0.2") as program:
        api = Rest(Cluster.of(tmp_path / "kubeconfig"))
        version = api.get(CONFIGMAPS)["metadata"]["resourceVersion"]
        page = api.get("/api/v1/configmaps", limit=1)["metadata"]
        with api.watch(CONFIGMAPS, resourceVersion=version, allowWatchBookmarks=True) as events:
            api.create(CONFIGMAPS, config_map("before"))
            assert next(event for event in events if event["type"] == "ADDED")
            program.signal(signal.SIGUSR1)
            api.create(CONFIGMAPS, config_map("after"))
            assert (
                next(event for event in events if event["type"] == "ADDED")["object"]["metadata"]["name"]
                == "after"
            )
        with api.watch(CONFIGMAPS, resourceVersion=version) as events:
            error = next(events)
        assert (error["type"], error["object"]["code"], error["object"]["reason"]) == (
            "ERROR",
            410,
            "Expired",
        )
        with pytest.raises(Refused, match="410"):
            api.get("/api/v1/configmaps", limit=1, **{"continue": page["continue"]})
