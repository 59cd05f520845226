"""Records and event logs that another version of the program wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replaying import mismatches
from typer.testing import CliRunner

from megascale.cli.events import app
from megascale.cli.history import EventLogFile
from megascale.cli.verify import verify
from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.codec import as_member, decode, encode, is_known
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Cause, Timer
from megascale.core.eventlog import ForeignEntry, Header, parse_line
from megascale.core.machine import CORE_VERSION, Core
from megascale.core.state.record import Exclusion, Incident, JobState
from megascale.driver.record import read_record
from megascale.errors import InputError
from megascale.observe.rundir import RunDir

STORED = Path(__file__).parents[2] / "data" / "stored"
VERSIONS = sorted(path for path in STORED.iterdir() if path.is_dir())


def restarted(job: Any, **changes: Any) -> list[fx.Effect]:
    """A new driver life of `job` from its snapshot with `changes`; the effects of its first event."""
    snapshot = json.loads(json.dumps(job.core.snapshot())) | changes
    job.core = Core.restore(job.core.policy, snapshot)
    job.said.clear()
    job.driver_starts()
    return list(job.said)


# What was stored by earlier versions, made by real runs


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_stored_record_is_read_and_the_job_goes_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text((folder / "record-recovering.json").read_text())
    record = read_record(RunDir(tmp_path))
    assert record is not None
    core = Core.restore(Policy(nodes=2, spare_nodes=1, min_nodes=2, steps=40), record["core"])
    assert core.record.state is JobState.STOPPING
    assert core.record.incident is not None
    assert core.record.incident.cause is Cause.NODE_LOST
    assert core.record.incident.node == "node-1"
    (kill,) = core.step(ev.DriverStarted(2), core.record.ledger.since + 5.0)
    assert isinstance(kill, fx.Kill)
    assert kill.nodes == ("node-0",)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_stored_record_of_an_ended_job_is_read(folder: Path) -> None:
    stored = json.loads((folder / "record.json").read_text())
    record = Core.restore(Policy(), stored["core"]).record
    assert (record.state, record.finish_state, record.best_step) == ("finished", "completed", 40)
    assert [incident.outcome for incident in record.incidents] == ["recovered", "recovered"]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_stored_log_is_shown_and_verified_if_it_is_of_this_version(folder: Path) -> None:
    lines = (folder / "events.jsonl").read_text().splitlines()
    header = parse_line(lines[0])
    assert isinstance(header, Header)
    if header.core_version == CORE_VERSION:
        assert mismatches(lines) == []
    else:
        with pytest.raises(InputError, match=f"recorded by core version {header.core_version}"):
            verify(EventLogFile(folder / "events.jsonl"))
    shown = CliRunner().invoke(app, ["show", str(folder / "events.jsonl")])
    assert shown.exit_code == 0
    assert "rank 1 on node-1 was killed by SIGKILL" in shown.stdout
    assert "attempt 3 on 2 nodes, from step 20 of attempt 2" in shown.stdout
    assert "completed: all 40 steps are done" in shown.stdout


def test_what_this_version_stores_is_among_them() -> None:
    """A new CORE_VERSION needs files of its own: see tests/data/README.md."""
    assert f"core-{CORE_VERSION}" in [folder.name for folder in VERSIONS]


# What a newer version may write


def test_fields_that_are_not_known_are_ignored_at_any_depth() -> None:
    data = encode(Incident("i-1", Cause.CRASH, "why"))
    assert isinstance(data, dict)
    assert decode(Incident, data | {"colour": "red"}) == Incident("i-1", Cause.CRASH, "why")
    snapshot = Core(Policy()).snapshot()
    assert isinstance(snapshot, dict)
    spec = {"running": "r1", "mood": {"deep": [1]}}
    core = Core.restore(Policy(), snapshot | {"moon": {"full": True}, "spec": spec})
    assert core.record.spec.running == "r1"


def test_a_field_that_is_missing_without_a_default_is_named() -> None:
    with pytest.raises(ValueError, match="Incident lacks cause, reason"):
        decode(Incident, {"id": "i-1"})


def test_an_unknown_word_is_kept_as_text() -> None:
    incident = decode(Incident, {"id": "i-1", "cause": "sunspot", "reason": "why", "action": "pray"})
    assert incident.cause == "sunspot"
    assert not is_known(incident.cause)
    assert is_known(Cause.CRASH)
    assert encode(incident) == {"id": "i-1", "cause": "sunspot", "reason": "why", "action": "pray"}
    assert "sunspot" not in [member.value for member in Cause]


def test_an_unknown_key_is_kept_as_text() -> None:
    data = {"id": "i-1", "cause": "crash", "reason": "why", "milestones": {"blessed": {"at": 1.0}}}
    assert encode(decode(Incident, data)) == data


def test_an_empty_text_of_an_older_version_is_nothing() -> None:
    assert decode(Exclusion, {"reason": "", "incident": "i-1", "at": 1.0}).reason is None


def test_unknown_incident_causes_in_the_history_change_nothing(running) -> None:
    job = running(2)
    history = [{"id": "i-1", "cause": "sunspot", "reason": "why", "action": "pray", "outcome": "recovered"}]
    assert restarted(job, incidents=history) == []
    job.join("n-0", "n-1", attempt=1).train(10)
    assert job.state is JobState.RUNNING
    assert job.core.snapshot()["incidents"] == history


def test_effects_of_unknown_kinds_are_dropped_and_a_person_is_paged(running) -> None:
    job = running(2)
    pending = {
        "e-90": {"kind": "MoveRack", "data": {"effect_id": "e-90", "reason": "why", "rack": 7}},
        "e-91": {"kind": "Probe", "data": {"effect_id": "e-91", "reason": "by another name", "host": "n-1"}},
    }
    (page,) = restarted(job, pending=pending)
    assert isinstance(page, fx.Page)
    assert "newer version" in page.reason
    assert "effect MoveRack, effect Probe" in page.reason
    assert [p.kind for p in job.record.pending.values()] == ["Page"]
    job.join("n-0", "n-1", attempt=1).train(10)
    assert job.state is JobState.RUNNING


def test_timers_of_unknown_names_are_dropped(running) -> None:
    job = running(2)
    (page,) = restarted(job, deadlines={"moonrise": job.now + 1.0})
    assert "timer moonrise" in page.reason
    assert as_member(Timer, "moonrise") not in job.record.deadlines
    job.join("n-0", "n-1", attempt=1).train(10)
    assert job.state is JobState.RUNNING


@pytest.mark.parametrize("state", ["launching", "diagnosing", "saving", "stopping"])
def test_a_state_whose_timer_was_not_known_is_left_all_the_same(running, state: str) -> None:
    job = running(2)
    job.edited = True
    restarted(job, state=state, pending={}, deadlines={"moonrise": job.now + 1.0})
    job.wait(4000.0, beating=False)
    assert job.state is not JobState(state)


def test_a_job_state_that_is_not_known_is_left_by_a_restart_without_blame(running) -> None:
    job = running(2)
    job.commit(1)
    effects = restarted(job, state="meditating", deadlines={}, pending={})
    assert [type(effect) for effect in effects] == [fx.Page, fx.Kill]
    assert "job state meditating" in effects[0].reason
    job.join("n-0", "n-1", attempt=1).recovers()
    assert job.state is JobState.RUNNING
    assert job.record.attempt == 2
    assert (job.record.incidents, job.record.blame, job.record.restarts) == ([], {}, {})


def test_a_plan_that_is_not_known_is_a_relaunch(running) -> None:
    job = running(2)
    job.edited = True
    restarted(job, state="stopping", plan={"then": "transcend", "reason": "why"})
    job.join("n-0", "n-1", attempt=1)
    job.wait(60.0)
    job.launches()
    assert (job.state, job.record.attempt) == (JobState.RUNNING, 2)


def test_a_record_of_a_newer_schema_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"version": 2, "job": "x", "term": 1, "core": None}))
    with pytest.raises(InputError, match="version 2, this program reads 1"):
        read_record(RunDir(tmp_path))


def lines_of_a_newer_version() -> Iterator[str]:
    event = {"kind": "Tick", "colour": "red"}
    yield json.dumps({"at": 1.0, "event": {"kind": "MoonRose", "phase": 0.5}})
    yield json.dumps({"at": 1.0, "event": event, "effects": [{"kind": "MoveRack", "effect_id": "e-1"}]})


def test_lines_of_unknown_kinds_are_told_apart_from_damage() -> None:
    assert [parse_line(line) for line in lines_of_a_newer_version()] == [
        ForeignEntry(1.0, ("MoonRose",)),
        ForeignEntry(1.0, ("MoveRack",)),
    ]


def test_a_line_that_is_nested_too_deeply_is_refused_like_any_other_damage() -> None:
    with pytest.raises(ValueError, match="nested more than 64 levels"):
        parse_line("[" * 100_000)
