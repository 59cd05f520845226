"""Ranks that run a program: what an agent starts, keeps beside the rank record, and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import ranks as module
from megascale.agent import stacks
from megascale.agent.config import AgentConfig
from megascale.agent.ranks import Ranks
from megascale.agent.zygote import launch_from_json
from megascale.checkpoint.snapshot_folders import SHARED_MEMORY, snapshot_file
from megascale.core.contract.lineage import Commit
from megascale.errors import InputError
from megascale.job import TrainingJob, from_mapping
from megascale.network.profile import explain
from megascale.observe.fault_markers import FaultMarker, leave_marker
from megascale.observe.rankfile import RankFile
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb


def job_of(script: str, **spec: Any) -> TrainingJob:
    command = {"args": ["sh", "-c", script], "env": {"WORD": "hello"}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "q"}}
    return from_mapping(
        head | {"spec": {"nodes": 2, "ranksPerNode": 2, "steps": 1, "runtime": {"command": command}} | spec}
    )


class Stage:
    """One of two nodes; its exits are in `told`."""

    def __init__(self, folder: Path, job: TrainingJob) -> None:
        self.run, self.job = RunDir(folder), job
        self.told: list[pb.RankExit] = []
        self.changed = asyncio.Event()

        class Known:
            async def get(self, _revision: str) -> TrainingJob:
                return job

        self.ranks = Ranks(AgentConfig.local(folder, "n0"), cast(Any, None), cast(Any, Known()), self._take)

    def _take(self, report: pb.RankExit) -> None:
        self.told.append(report)
        self.changed.set()

    async def launch(self, node_rank: int = 0, attempt: int = 4) -> None:
        await self.ranks.launch(3, pb.Launch(attempt=attempt, nodes=2, node_rank=node_rank, store_host="h"))

    async def ends(self, count: int) -> dict[int, pb.RankExit]:
        while len(self.told) < count:
            self.changed.clear()
            await self.changed.wait()
        return {report.rank: report for report in self.told}


def play(folder: Path, job: TrainingJob, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage(folder, job)
        async with asyncio.timeout(30.0):
            try:
                await scenario(stage)
            finally:
                await stage.ranks.kill(10**6, 10.0)

    asyncio.run(main())


def test_a_program_runs_once_for_each_rank_with_its_environment_and_its_log(tmp_path: Path) -> None:
    job = job_of('echo "$WORD from $RANK"; exit $RANK')

    async def scenario(stage: Stage) -> None:
        await stage.launch()
        found = await stage.ends(2)
        assert {rank: report.exit_code for rank, report in found.items()} == {0: 0, 1: 1}
        explained = "".join(f"{line}\n" for line in explain(job.spec.network))
        assert stage.run.rank_log(4, 0).read_text() == explained + "hello from 0\n"
        assert stage.run.rank_log(4, 1).read_text() == "hello from 1\n"
        assert [report.exit_report for report in stage.told] == ["", ""]
        assert list(found[1].log_tail) == ["hello from 1"]
        for local in (0, 1):
            rank_file = stage.run.rank_file("n0", local)
            launch = launch_from_json(json.loads(rank_file.with_suffix(".json").read_text()))
            assert (launch.rank, launch.attempt, launch.rank_file) == (local, 4, rank_file)
            record = RankFile.open(rank_file).read()
            assert (record.term, record.attempt, record.rank) == (3, 4, local)
        assert (stage.run.root / "flight").is_dir()

    play(tmp_path, job, scenario)


def test_only_the_first_rank_of_the_job_explains_the_network(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch(node_rank=1)
        assert set(await stage.ends(2)) == {2, 3}
        assert [stage.run.rank_log(4, rank).read_text() for rank in (2, 3)] == ["2\n", "3\n"]

    play(tmp_path, job_of('echo "$RANK"'), scenario)


def test_what_programs_started_is_looked_for_when_they_are_ended_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[set[Path]] = []
    monkeypatch.setattr(module, "kill_strays", lambda files: looked_for.append(set(files)))

    async def scenario(stage: Stage) -> None:
        await stage.launch()
        assert looked_for == []
        await stage.ranks.kill(4, 10.0)
        assert looked_for == [{stage.run.rank_file("n0", local) for local in (0, 1)}]
        await stage.ranks.kill(4, 10.0)
        assert len(looked_for) == 1
        await stage.launch(attempt=5)
        await stage.ranks.kill(5, 10.0)
        assert looked_for == [looked_for[0]] * 2

    play(tmp_path, job_of("sleep 60"), scenario)


def test_a_program_that_does_not_exist_starts_nothing(tmp_path: Path) -> None:
    job = job_of("true")
    job = job.model_copy(deep=True)
    assert job.spec.runtime.command is not None
    job.spec.runtime.command.args[0] = "nothing-here"

    async def scenario(stage: Stage) -> None:
        with pytest.raises(InputError, match="nothing-here"):
            await stage.launch()
        assert stage.ranks.alive == []

    play(tmp_path, job, scenario)


def test_the_end_of_a_rank_at_a_faults_hands_is_told_as_injected(tmp_path: Path) -> None:
    job = job_of("kill -KILL $$", faults=[{"kind": "killRank", "rank": 1, "step": 1}])

    async def scenario(stage: Stage) -> None:
        leave_marker(stage.run.faults, 0, FaultMarker(12.0, "killRank", 1, "n0", 4, 1))
        await stage.launch()
        found = await stage.ends(2)
        assert {rank: report.injected for rank, report in found.items()} == {0: False, 1: True}
        assert found[1].at == 12.0

    play(tmp_path, job, scenario)


def test_no_snapshots_are_looked_for_where_a_program_runs(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.ranks.snapshots(stage.job) == []
        assert not (tmp_path / "snapshots").exists()

    play(tmp_path, job_of("true"), scenario)


@pytest.mark.parametrize(("enabled", "folders"), [(True, ["memory", "disk"]), (False, [])])
def test_snapshots_are_those_that_every_local_rank_has_in_one_of_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, folders: list[str]
) -> None:
    made: list[tuple[Any, ...]] = []
    asked: list[list[Path]] = []

    def make_folders(*arguments: Any) -> tuple[Path, ...]:
        made.append(arguments)
        return tmp_path / "memory", tmp_path / "disk"

    def held(files: list[Path]) -> set[Commit]:
        asked.append(files)
        return {Commit(8, 4), Commit(6, 4)} if files[0].parent.name == "memory" else {Commit(6, 4)}

    monkeypatch.setattr(module, "make_folders", make_folders)
    monkeypatch.setattr(module, "held", held)
    data = {"path": "d", "sequenceLength": 8, "microBatch": 1, "globalBatch": 8}
    runtime = {"command": None, "megatron": {"model": {"preset": "tiny"}, "data": data}}
    job = job_of("true", runtime=runtime, checkpoint={"memory": {"enabled": enabled}})

    async def scenario(stage: Stage) -> None:
        expected = [pb.Commit(step=6, attempt=4), pb.Commit(step=8, attempt=4)] if enabled else []
        assert stage.ranks.snapshots(job) == expected
        assert asked == [[snapshot_file(tmp_path / name, local) for local in (0, 1)] for name in folders]
        assert made == [(tmp_path, "n0", SHARED_MEMORY)] * enabled

    play(tmp_path, job, scenario)


@pytest.mark.parametrize(
    ("state", "asked"), [("R", True), ("S", True), ("D", True), ("T", False), ("", False)]
)
def test_only_processes_that_may_run_are_asked_for_their_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, asked: bool
) -> None:
    async def stack(_pid: int) -> list[str]:
        return ["a frame"]

    monkeypatch.setattr(module, "process_state", lambda _pid: state)
    monkeypatch.setattr(module, "stack_of", stack)

    async def scenario(stage: Stage) -> None:
        await stage.launch()
        for found in await stage.ranks.evidence():
            assert (found.process_state, list(found.stack)) == (state, ["a frame"] if asked else [])

    play(tmp_path, job_of("sleep 60"), scenario)


def test_stacks_are_asked_of_py_spy_without_stopping_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(stacks.sys, "executable", str(tmp_path / "python"))
    assert asyncio.run(stacks.stack_of(77)) == ["no stack: dump --json --nonblocking --pid 77"]
