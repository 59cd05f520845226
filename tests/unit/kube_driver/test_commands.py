"""What a driver does about each version of its TrainingJob."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from megascale_operator.driver.commands import CommandWatcher, checkpoint_uri, manifest_of, starting_manifest
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile import names

from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Command
from megascale.core.machine import Core
from megascale.core.state.record import JobState
from megascale.errors import FencedError, InputError, ManifestError
from megascale.job import TrainingJob
from megascale.rpc import megascale_pb2 as pb


class Driver:
    """Keeps what it is told."""

    term = 3

    def __init__(self) -> None:
        self.core, self.changed = Core(Policy(nodes=1)), asyncio.Event()
        self.board = self
        self.alerts: list[str] = []
        self.specs: list[TrainingJob] = []
        self.commands: list[pb.CommandRequest] = []
        self.posted: list[ev.Event] = []
        self.raises: Exception | None = None

    def alert(self, message: str) -> None:
        self.alerts.append(message)

    def change_spec(self, job: TrainingJob) -> None:
        if self.raises is not None:
            raise self.raises
        self.specs.append(job)

    def command(self, request: pb.CommandRequest) -> tuple[bool, str]:
        self.commands.append(request)
        return True, "x" * 600

    def post(self, event: ev.Event) -> None:
        self.posted.append(event)


class Fleet:
    answers: Any = None

    def take_answers(self, status: Obj) -> None:
        self.answers = status


class Status:
    last_command: Any = None
    generation = 0


def job_object(generation: int = 1, steps: Any = 10, **parts: Any) -> Obj:
    metadata = {"name": "q", "uid": "u1", "generation": generation, **parts.pop("metadata", {})}
    spec = {"steps": steps, "runtime": {"command": {"args": ["true"]}}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob"}
    return {**head, "metadata": metadata, "spec": spec, **parts}


class Stage:
    def __init__(self, job: Obj, uri: str = "") -> None:
        self.driver, self.fleet, self.status = Driver(), Fleet(), Status()
        any_: Any = cast(Any, self)
        generation = job["metadata"]["generation"]
        self.watcher = CommandWatcher(any_, "team", job, generation, any_.fleet, any_.status, uri)

    def take(self, job: Obj) -> None:
        self.watcher.take(cast(Any, self.driver), job)


def ordered(order: Any) -> Obj:
    text = order if isinstance(order, str) else json.dumps(order)
    return job_object(metadata={"annotations": {names.COMMAND: text}})


def test_only_a_newer_generation_is_a_change() -> None:
    stage = Stage(job_object(4))
    stage.take(job_object(4, steps=20))
    assert stage.driver.specs == []
    stage.take(job_object(5, steps=20))
    stage.take(job_object(5, steps=20))
    assert [job.spec.steps for job in stage.driver.specs] == [20]
    assert stage.status.generation == 5
    assert stage.driver.changed.is_set()


@pytest.mark.parametrize("error", ["invalid", "too large"])
def test_a_spec_that_is_not_good_is_said_and_not_tried_again(error: str) -> None:
    stage = Stage(job_object(1))
    if error == "too large":
        stage.driver.raises = InputError("the manifest of q has 300000 bytes when it is compressed")
    bad = job_object(2, steps=-1 if error == "invalid" else 20)
    stage.take(bad)
    stage.take(bad)
    (alert,) = stage.driver.alerts
    assert alert.startswith("generation 2 of the spec is not good and not used: ")
    assert stage.status.generation == 1, "the generation in use"
    assert stage.driver.specs == []
    stage.driver.raises = None
    stage.take(job_object(3, steps=20))
    assert (stage.status.generation, len(stage.driver.specs)) == (3, 1)


def test_checkpoints_go_where_the_slots_put_them(tmp_path: Path) -> None:
    stage = Stage(job_object(1), uri="/store")
    stage.take(job_object(2))
    named = job_object(3)
    named["spec"]["checkpoint"] = {"uri": "/mine"}
    stage.take(named)
    assert [job.spec.checkpoint.uri for job in stage.driver.specs] == ["/store", "/mine"]
    assert manifest_of(job_object(), "").spec.checkpoint.uri is None
    with pytest.raises(ManifestError):
        manifest_of(job_object(steps=0), "")
    path = tmp_path / "job.json"
    assert checkpoint_uri(path) == ""
    path.write_text(json.dumps(job_object()))
    assert checkpoint_uri(path) == ""
    path.write_text(json.dumps(named))
    assert checkpoint_uri(path) == "/mine"


def test_a_driver_starts_with_the_last_valid_spec(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    bad = job_object(5, steps=0, status={"observedGeneration": 4})
    with pytest.raises(ManifestError):
        starting_manifest(bad, path)
    path.write_text(json.dumps(job_object(steps=30)))
    manifest, generation = starting_manifest(bad, path)
    assert (manifest.spec.steps, generation) == (30, 4)
    manifest, generation = starting_manifest(job_object(5, steps=40), path)
    assert (manifest.spec.steps, generation) == (40, 5)


def test_an_order_is_given_once_and_answered_in_few_letters() -> None:
    stage = Stage(job_object())
    order = {"id": "o-1", "command": "evict", "node": "n1", "reason": "fan noise", "by": "ann"}
    for _ in range(2):
        stage.take(ordered(order))
    assert stage.driver.commands == [
        pb.CommandRequest(command="evict", node="n1", reason="fan noise", by="ann")
    ]
    assert stage.status.last_command == {"id": "o-1", "ok": True, "message": "x" * 500}
    assert stage.driver.changed.is_set()
    stage.take(ordered({"id": "o-2", "command": "save", "node": None}))
    assert stage.driver.commands[1] == pb.CommandRequest(command="save")


def test_an_order_of_a_predecessor_is_not_given_again() -> None:
    job = job_object(status={"driver": {"lastCommand": {"id": "o-1"}, "term": 2}})
    stage = Stage(job)
    stage.take(ordered({"id": "o-1", "command": "evict"}))
    assert stage.driver.commands == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"command": "save"}', json.dumps({"id": "o-1", "reason": "x" * 5000})]
)
def test_an_annotation_that_is_no_order_is_left_alone(text: str) -> None:
    stage = Stage(job_object())
    stage.take(ordered(text))
    assert stage.driver.commands == []
    assert stage.status.last_command is None


def test_ids_are_cut_before_they_are_compared() -> None:
    stage = Stage(job_object())
    for _ in range(2):
        stage.take(ordered({"id": "o" * 100, "command": "save"}))
    assert len(stage.driver.commands) == 1
    assert stage.status.last_command["id"] == "o" * 63


def test_a_job_that_is_deleted_is_stopped_once_unless_it_has_ended() -> None:
    deleted = job_object(metadata={"deletionTimestamp": "2026-11-30T00:00:00Z"})
    stage = Stage(job_object())
    for _ in range(2):
        stage.take(deleted)
    assert stage.driver.posted == [ev.ManualCommand(Command.STOP, "the TrainingJob was deleted")]
    ended = Stage(job_object())
    ended.driver.core.record.state = JobState.FINISHED
    ended.take(deleted)
    assert ended.driver.posted == []


def test_a_successors_status_ends_this_driver() -> None:
    stage = Stage(job_object())
    stage.take(job_object(status={"driver": {"term": 3}, "operator": {"refusals": []}}))
    assert stage.fleet.answers == {"refusals": []}
    with pytest.raises(FencedError, match="a driver of a higher term than 3 wrote the status"):
        stage.take(job_object(status={"driver": {"term": 4}}))


@pytest.mark.parametrize("found", [None, {"metadata": {"name": "q", "uid": "u2"}}], ids=["gone", "another"])
def test_a_job_that_is_gone_ends_this_driver(found: Obj | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from megascale_operator.driver import commands as module

    async def follow(*_what: object) -> Any:
        yield found

    monkeypatch.setattr(module, "follow", follow)
    stage = Stage(job_object())
    with pytest.raises(FencedError, match="the TrainingJob q was deleted"):
        asyncio.run(stage.watcher.run(cast(Any, stage.driver)))
