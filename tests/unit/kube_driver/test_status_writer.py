"""When the driver's status is written: on change, and often enough to be known to be alive."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any, cast

import pytest
from megascale_operator.driver import status as module
from megascale_operator.driver.status import StatusWriter

from megascale.driver.record import RECORD_VERSION
from megascale.errors import FencedError


class Api:
    def __init__(self) -> None:
        self.written: list[Any] = []
        self.term = 1

    async def get(self, *_what: object) -> dict[str, Any]:
        record = json.dumps({"version": RECORD_VERSION, "term": self.term, "core": None})
        return {"metadata": {"name": "q-record"}, "data": {"record.json": record}}

    async def apply(self, _resource: object, body: dict[str, Any], _namespace: str, **_how: object) -> None:
        self.written.append(body["status"]["driver"])


def test_a_status_that_does_not_change_is_told_every_45_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    api, now = Api(), 0.0
    writer = StatusWriter(cast(Any, api), "team", "q", "q-driver-0", cast(Any, None))
    said = {"jobState": "assembling", "step": 0, "term": 1}
    monkeypatch.setattr(writer, "status", lambda _driver: dict(said))
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    times = []
    for second in range(100):
        now = float(second)
        before = len(api.written)
        assert asyncio.run(writer._write_if_due(cast(Any, None)))
        times += [second] if len(api.written) > before else []
    assert times[0] == 0
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps
    assert all(45 <= gap <= 60 for gap in gaps)
    said["jobState"] = "running"
    asyncio.run(writer._write_if_due(cast(Any, None)))
    assert api.written[-1]["jobState"] == "running"


def test_a_driver_that_slept_does_not_write_over_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    writer = StatusWriter(cast(Any, api), "team", "q", "q-driver-0", cast(Any, None))
    monkeypatch.setattr(writer, "status", lambda _driver: {"jobState": "running", "term": 1})
    api.term = 2
    with pytest.raises(FencedError, match="term 2 took over from 1"):
        asyncio.run(writer._write_if_due(cast(Any, None)))
    assert api.written == []
