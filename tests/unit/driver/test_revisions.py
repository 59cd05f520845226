"""Manifests beside the job record: which are kept, and what a driver starts from."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.core.contract import events as ev
from megascale.core.machine import Core
from megascale.core.state.record import JobState, Spec
from megascale.driver.driver import Driver
from megascale.driver.policy import policy_of
from megascale.driver.ports import DriverPorts
from megascale.driver.record import Claim, LocalRecord
from megascale.driver.revisions import MOST_BYTES, Revisions
from megascale.errors import InputError
from megascale.job import TrainingJob, canonical_json, from_mapping, revision_of
from megascale.observe.rundir import RunDir


def job_of(
    steps: int = 10, *, silence_s: int = 15, args: tuple[str, ...] = ("python", "a.py")
) -> TrainingJob:
    spec = {
        "steps": steps,
        "runtime": {"command": {"args": list(args)}},
        "health": {"silenceSeconds": silence_s},
    }
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    return from_mapping(head | {"spec": spec})


OLD, NEW = job_of(10), job_of(20)
R_OLD, R_NEW = revision_of(OLD), revision_of(NEW)


def test_what_a_record_refers_to_is_found_and_nothing_else() -> None:
    revisions = Revisions({})
    names = [revisions.add(job_of(steps)) for steps in (1, 2, 3, 4)]
    spec = Spec(running=names[0], waiting=names[1], previous=names[2], rejected=names[3])
    assert list(revisions.referred(spec)) == names[:3]
    assert revisions.referred(Spec(running="unheard of")) == {}
    assert revisions.text(names[3]) == canonical_json(job_of(4))
    assert revisions.text("unheard of") is None
    assert revisions.job(names[3]) == job_of(4)
    assert revisions.job("unheard of") is None


def test_many_changes_push_out_the_oldest_but_not_what_is_referred_to() -> None:
    revisions = Revisions({})
    names = []
    for steps in range(1, 21):
        names.append(revisions.add(job_of(steps)))
        revisions.referred(Spec(running=names[0]))
    assert [name for name in names if revisions.text(name)] == [names[0], *names[-15:]]


def test_a_manifest_that_is_too_large_to_be_kept_is_refused() -> None:
    letters = random.Random(0)
    incompressible = tuple(
        "".join(letters.choices("abcdefghijklmnop" * 4 + "0123456789", k=4000)) for _ in range(90)
    )
    with pytest.raises(InputError, match=rf"the manifest of j has \d+ bytes .* at most {MOST_BYTES}"):
        Revisions({}).add(job_of(args=("python", *incompressible)))


def test_a_damaged_manifest_is_refused() -> None:
    with pytest.raises(InputError, match="is damaged"):
        Revisions({R_OLD: canonical_json(NEW)}).job(R_OLD)


def test_the_local_record_keeps_what_it_is_given_and_no_more(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    async def scenario() -> None:
        record = LocalRecord(run, "j")
        assert (await record.claim()).revisions == {}
        await record.write({"attempt": 1}, {R_OLD: "old", R_NEW: "new"})
        await record.write({"attempt": 2}, {R_NEW: "new"})
        await record.close()
        assert [path.name for path in run.revisions.iterdir()] == [f"{R_NEW}.json"]
        successor = LocalRecord(run, "j")
        claim = await successor.claim()
        assert (claim.term, claim.snapshot, dict(claim.revisions)) == (2, {"attempt": 2}, {R_NEW: "new"})

    asyncio.run(scenario())


class Ports:
    """As much of a driver's environment as taking over a job needs."""

    def __init__(self, claimed: Claim) -> None:
        self.began: list[Any] = []
        self._claimed = claimed

    async def claim(self) -> Claim:
        return self._claimed

    async def begin(self, header: Any, term: int) -> None:
        self.began.append((header, term))


def driver_on(
    folder: Path, claim: Claim, given: TrainingJob, *, reopens: bool = False
) -> tuple[Driver, Ports]:
    ports = Ports(claim)
    nothing, port = cast(Any, None), cast(Any, ports)
    made = DriverPorts(port, nothing, nothing, port, reopens=reopens)
    return asyncio.run(Driver.take_over(RunDir(folder), given, made)), ports


def claim_of(job: TrainingJob, spec: Spec, *kept: TrainingJob, **record: Any) -> Claim:
    core = Core(policy_of(job))
    core.record.spec = spec
    for name, value in record.items():
        setattr(core.record, name, value)
    return Claim(2, core.snapshot(), {revision_of(one): canonical_json(one) for one in kept})


def posted(driver: Driver) -> list[ev.Event]:
    found = []
    while driver._inbox:
        found.append(asyncio.run(driver._inbox.next(0.0)))
    return found


def test_the_first_launch_has_a_revision(tmp_path: Path) -> None:
    driver, _ = driver_on(tmp_path, Claim(1, None), OLD)
    driver.change_spec(OLD)
    assert posted(driver) == [ev.SpecChanged(policy_of(OLD), R_OLD, restart=False)]
    assert driver.revisions.text(R_OLD) == canonical_json(OLD)


def test_a_successor_with_the_same_manifest_changes_nothing(tmp_path: Path) -> None:
    driver, _ = driver_on(tmp_path, claim_of(OLD, Spec(running=R_OLD), OLD, state=JobState.RUNNING), OLD)
    driver.change_spec(OLD)
    assert posted(driver) == []


def test_a_change_that_nobody_saw_counts_from_the_manifest_that_runs(tmp_path: Path) -> None:
    claim = claim_of(OLD, Spec(running=R_OLD), OLD, state=JobState.RUNNING)
    driver, ports = driver_on(tmp_path, claim, NEW)
    assert driver.core.policy.steps == 10
    assert ports.began[0][0].policy == policy_of(OLD)
    driver.change_spec(NEW)
    assert posted(driver) == [ev.SpecChanged(policy_of(NEW), R_NEW, restart=True)]


def test_what_waits_is_what_the_next_change_is_compared_with(tmp_path: Path) -> None:
    claim = claim_of(OLD, Spec(running=R_OLD, waiting=R_NEW), OLD, NEW, state=JobState.RUNNING)
    driver, _ = driver_on(tmp_path, claim, NEW)
    assert driver.core.policy.steps == 20
    thresholds = job_of(20, silence_s=30)
    driver.change_spec(thresholds)
    assert posted(driver) == [ev.SpecChanged(policy_of(thresholds), revision_of(thresholds), restart=False)]


def test_a_manifest_that_was_rolled_back_stays_so_for_a_successor(tmp_path: Path) -> None:
    spec = Spec(running=R_OLD, rejected=R_NEW)
    for state in (JobState.RUNNING, JobState.FINISHED):
        driver, _ = driver_on(tmp_path, claim_of(OLD, spec, OLD, state=state), NEW, reopens=True)
        assert driver.core.policy.steps == 10
        driver.change_spec(NEW)
        assert posted(driver) == []
        (alert,) = driver.board.document()["alerts"]
        assert f"revision {R_NEW[:12]} of the manifest made no progress" in alert["message"]
        assert f"{R_OLD[:12]} runs" in alert["message"]


def test_an_ended_job_is_started_again_with_the_manifest_that_is_given(tmp_path: Path) -> None:
    claim = claim_of(OLD, Spec(running=R_OLD), OLD, state=JobState.FINISHED)
    driver, _ = driver_on(tmp_path, claim, NEW, reopens=True)
    assert driver.core.policy.steps == 20
    driver.change_spec(NEW)
    assert posted(driver) == [ev.SpecChanged(policy_of(NEW), R_NEW, restart=False)]


@pytest.mark.parametrize("kept", [{}, {R_OLD: "{}"}], ids=["lost", "damaged"])
def test_without_the_manifest_that_runs_a_driver_goes_by_the_one_it_is_given(
    tmp_path: Path, kept: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    claim = claim_of(OLD, Spec(running=R_OLD), state=JobState.RUNNING)
    driver, _ = driver_on(tmp_path, dataclasses.replace(claim, revisions=kept), NEW)
    said = [message for message in caplog.messages if "is damaged" in message]
    assert len(said) == len(kept)
    assert all(message.endswith("; going on with the manifest that was given") for message in said)
    assert driver.core.policy.steps == 20
    driver.change_spec(NEW)
    assert posted(driver) == [ev.SpecChanged(policy_of(NEW), R_NEW, restart=False)]


def test_records_are_written_with_what_they_refer_to(tmp_path: Path) -> None:
    written: list[Any] = []

    class Store:
        async def write(self, snapshot: Any, revisions: dict[str, str]) -> None:
            written.append((snapshot["spec"]["running"], json.loads(revisions[R_OLD])["spec"]["steps"]))

    ports = DriverPorts(cast(Any, Store()), cast(Any, None), cast(Any, None), cast(Any, None))
    driver = Driver(RunDir(tmp_path), OLD, ports, claim_of(OLD, Spec(running=R_OLD), OLD))
    asyncio.run(driver._write_record())
    assert written == [(R_OLD, 10)]
