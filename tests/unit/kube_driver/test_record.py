"""The record in a ConfigMap: terms, conflicts, and the manifests beside it."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from megascale_operator.driver import record as module
from megascale_operator.driver.record import REVISIONS, KubernetesRecord, check_term, record_in, revisions_in
from megascale_operator.kube.errors import ConflictError, NotFoundError

from megascale.driver.record import RECORD_VERSION
from megascale.errors import FencedError, InputError, UnreachableError


class Api:
    """One ConfigMap with a resourceVersion; `before_write` plays whoever else writes."""

    def __init__(self) -> None:
        self.object: dict[str, Any] = {
            "metadata": {"name": "q-record", "resourceVersion": "1"}, "data": {"other": "kept"},
        }  # fmt: skip
        self.before_write: Callable[[], None] = lambda: None
        self.writes = 0
        self.away = False

    async def get(self, *_what: object) -> dict[str, Any]:
        if self.away:
            raise NotFoundError("q-record", 404)
        return copy.deepcopy(self.object)

    async def replace(self, _resource: object, body: dict[str, Any], _namespace: str) -> dict[str, Any]:
        self.before_write()
        if body["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"]:
            raise ConflictError("q-record was changed", 409)
        self.writes += 1
        self.object = copy.deepcopy(body)
        self.touch()
        return copy.deepcopy(self.object)

    def touch(self) -> None:
        version = int(self.object["metadata"]["resourceVersion"]) + 1
        self.object["metadata"]["resourceVersion"] = str(version)

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.object["data"]["record.json"]))


def record_on(api: Api, incarnation: int = 0) -> KubernetesRecord:
    return KubernetesRecord(cast(Any, api), "team", "q", f"q-driver-{incarnation}")


def test_a_record_and_its_manifests_are_one_write_and_come_back_together() -> None:
    async def scenario() -> None:
        api = Api()
        record = record_on(api)
        claim = await record.claim()
        assert (claim.term, claim.snapshot, claim.revisions) == (1, None, {})
        await record.write({"attempt": 4}, {"r1": "first", "r2": "second"})
        assert api.writes == 2
        assert api.record == {
            "version": 1,
            "job": "q",
            "term": 1,
            "pod": "q-driver-0",
            "core": {"attempt": 4},
        }
        assert api.object["data"]["other"] == "kept"
        claim = await record_on(api, 1).claim()
        assert (claim.term, claim.snapshot) == (2, {"attempt": 4})
        assert claim.revisions == {"r1": "first", "r2": "second"}

    asyncio.run(scenario())


def test_a_manifest_that_is_not_referred_to_any_more_goes() -> None:
    async def scenario() -> None:
        api = Api()
        record = record_on(api)
        await record.claim()
        await record.write({}, {"r1": "first", "r2": "second"})
        await record.write({}, {"r2": "second"})
        assert revisions_in(api.object) == {"r2": "second"}

    asyncio.run(scenario())


def test_three_manifests_of_the_largest_size_fit_beside_the_record() -> None:
    from megascale.driver.revisions import MOST_BYTES

    packed = 3 * (MOST_BYTES * 4 // 3 + 100) + (64 << 10)
    assert packed < 1 << 20


@pytest.mark.parametrize("text", ["{", "[]", '{"r1": 5}', '{"r1": "not base64!"}', '{"r1": "AAAA"}'])
def test_manifests_that_cannot_be_read_are_said_and_left_out(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert revisions_in({"metadata": {"name": "q-record"}, "data": {REVISIONS: text}}) == {}
    assert f"ConfigMap q-record: {REVISIONS} cannot be read" in caplog.text


def test_a_write_of_somebody_else_is_written_over_and_a_successor_is_not() -> None:
    async def scenario() -> None:
        api = Api()
        record = record_on(api)
        await record.claim()

        def somebody() -> None:
            api.before_write = lambda: None
            api.object["data"]["other"] = "changed"
            api.touch()

        api.before_write = somebody
        await record.write({"attempt": 1}, {})
        assert (api.record["core"], api.object["data"]["other"]) == ({"attempt": 1}, "changed")
        await record_on(api, 1).claim()
        with pytest.raises(FencedError, match="a driver of term 2 took over from 1"):
            await record.write({"attempt": 2}, {})
        assert api.record["core"] == {"attempt": 1}

    asyncio.run(scenario())


def test_a_record_that_changes_all_the_time_is_given_up() -> None:
    async def scenario() -> None:
        api = Api()
        record = record_on(api)
        await record.claim()
        api.before_write = api.touch
        with pytest.raises(UnreachableError, match="is changed all the time by others"):
            await record.write({}, {})

    asyncio.run(scenario())


def test_a_record_that_is_gone_cannot_be_written() -> None:
    async def scenario() -> None:
        api = Api()
        record = record_on(api)
        await record.claim()
        api.before_write, api.away = api.touch, True
        with pytest.raises(UnreachableError, match="ConfigMap q-record"):
            await record.write({}, {})

    asyncio.run(scenario())


def test_an_older_pod_does_not_claim_from_a_newer_one() -> None:
    async def scenario() -> None:
        api = Api()
        await record_on(api, 1).claim()
        with pytest.raises(FencedError, match="q-driver-1 is this job's driver now, not q-driver-0"):
            await record_on(api, 0).claim()
        assert (await record_on(api, 1).claim()).term == 2

    asyncio.run(scenario())


def test_a_claim_is_tried_again_until_it_holds_or_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.001)

    async def scenario() -> None:
        api = Api()

        def once() -> None:
            api.before_write = lambda: None
            api.touch()

        api.before_write = once
        assert (await record_on(api).claim()).term == 1
        api.away = True
        monkeypatch.setattr(module, "_CLAIM_S", 0.01)
        with pytest.raises(UnreachableError, match="the job record cannot be claimed"):
            await record_on(api).claim()

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["{", "[]", "{}", f'{{"version": {RECORD_VERSION + 1}}}'])
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="ConfigMap q-record"):
        record_in({"metadata": {"name": "q-record"}, "data": {"record.json": text}})


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"term": [2], "core": None}, "term is [2], expected a whole number >= 1"),
        ({"term": "2", "core": None}, "term is '2', expected a whole number >= 1"),
        ({"term": 2, "core": "x"}, "core is 'x', expected a mapping or null"),
        ({"term": 2, "core": {"attempt": "x"}}, "core: attempt: expected int, got 'x'"),
    ],
)
def test_a_record_of_another_shape_is_refused_before_it_is_claimed(fields: dict[str, Any], what: str) -> None:
    api = Api()
    api.object["data"]["record.json"] = json.dumps({"version": RECORD_VERSION, **fields})
    with pytest.raises(InputError) as caught:
        asyncio.run(record_on(api).claim())
    place = "ConfigMap q-record: record.json"
    assert str(caught.value) == f"{place} is damaged: {what}; remove that key to start the job over"
    assert api.writes == 0


def test_terms_are_compared() -> None:
    def with_term(term: int) -> dict[str, Any]:
        text = json.dumps({"version": RECORD_VERSION, "term": term, "core": None})
        return {"metadata": {"name": "q-record"}, "data": {"record.json": text}}

    check_term({"metadata": {"name": "q-record"}}, 1)
    check_term(with_term(1), 1)
    with pytest.raises(FencedError, match="term 2 took over from 1"):
        check_term(with_term(2), 1)
