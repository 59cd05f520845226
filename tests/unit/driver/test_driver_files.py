"""Record, event log and summary of a local run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from replaying import mismatches

from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy, RecoveryOverride
from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.eventlog import Entry, Header
from megascale.core.machine import Core
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import JobState
from megascale.driver.log import EventLog
from megascale.driver.policy import policy_of
from megascale.driver.record import LocalRecord, read_record
from megascale.driver.summary import counted_steps, summarise
from megascale.errors import FencedError, InputError
from megascale.job import from_mapping
from megascale.observe.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_terms_rise_and_the_snapshot_comes_back(run: RunDir) -> None:
    async def scenario() -> None:
        first = LocalRecord(run, "job")
        assert (await first.claim()).term == 1
        await first.write({"attempt": 4}, {})
        with pytest.raises(FencedError):
            await LocalRecord(run, "job").claim()
        await first.close()
        claim = await LocalRecord(run, "job").claim()
        assert (claim.term, claim.snapshot) == (2, {"attempt": 4})

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}', "{}"])
def test_a_damaged_record_is_refused(run: RunDir, text: str) -> None:
    run.record_file.write_text(text)
    with pytest.raises(InputError, match=r"record\.json"):
        read_record(run)


def test_a_torn_line_does_not_swallow_the_next(run: RunDir) -> None:
    policy = Policy(nodes=1)
    core = Core(policy)
    log = EventLog(run)
    event = ev.DriverStarted(1)

    async def write() -> None:
        await log.begin(Header("job", policy, None), 1)
        await log.append(Entry(10.0, event, tuple(core.step(event, 10.0))))
        await log.close()

    asyncio.run(write())
    with run.events_file.open("a") as handle:
        handle.write('{"at":11.0,"eve')
    successor = EventLog(run)

    async def go_on() -> None:
        await successor.begin(Header("job", policy, core.snapshot()), 2)
        await successor.close()

    asyncio.run(go_on())
    lines = run.events_file.read_text().splitlines()
    assert lines[2] == '{"at":11.0,"eve'
    assert mismatches([*lines[:2], lines[3]]) == []


def test_the_newest_attempt_of_a_step_counts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": s, "attempt": a, "loss": s + a / 10} for s, a in [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]
    ]
    zombie = {"step": 2, "attempt": 1, "loss": 9.0}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, zombie]) + '{"step": 4, "att'
    metrics.write_text(text)
    steps = counted_steps(metrics)
    assert {step: line["attempt"] for step, line in steps.items()} == {1: 1, 2: 2, 3: 2}
    assert counted_steps(tmp_path / "none.jsonl") == {}


def test_a_summary_gives_seconds_to_the_millisecond(tmp_path: Path) -> None:
    core = Core(Policy(nodes=1))
    core.record.state = JobState.RUNNING
    core.record.ledger.start(100.0)
    core.record.ledger.switch(GoodputPhase.PRODUCTIVE, 100.0)
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    job = from_mapping(head | {"spec": {"steps": 10, "runtime": {"command": {"args": ["true"]}}}})
    found = summarise(job, core, counted_steps(tmp_path / "none.jsonl"), 100.123456)
    assert (found["goodputSeconds"]["productive"], found["wallSeconds"]) == (0.123, 0.123)


def test_a_job_without_a_layout_has_one_node_for_each_copy_of_the_model() -> None:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    job = from_mapping(head | {"spec": {"steps": 10, "runtime": {"command": {"args": ["true"]}}}})
    policy = policy_of(job)
    assert (policy.model_nodes, policy.pipeline) == (1, 1)


def test_a_torn_line_does_not_hide_the_steps_after_it(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "attempt": 1}\n{"step": 2, "att\n{"step": 3, "attempt": 1}\n')
    assert sorted(counted_steps(metrics)) == [1, 3]


def test_an_override_matches_by_everything_the_manifest_names() -> None:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    spec: dict[str, Any] = {"steps": 10, "runtime": {"command": {"args": ["true"]}}}
    match = {"cause": "crash", "errorType": "OSError", "message": "a.b"}
    spec["recovery"] = {"overrides": [{"match": match, "action": "fail_job"}]}
    assert policy_of(from_mapping(head | {"spec": spec})).overrides == (
        RecoveryOverride(Action.FAIL_JOB, Cause.CRASH, error_type="OSError", message="a.b"),
    )
