"""What an agent tells of ranks that it kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import ranks as module
from megascale.agent.config import AgentConfig
from megascale.agent.manifests import Manifests
from megascale.agent.processes import Child, kill_all, process_state
from megascale.agent.ranks import Ranks
from megascale.agent.zygote_client import Zygote
from megascale.core.contract.lineage import Commit
from megascale.core.rules import LineClassifier, rule_set
from megascale.engine.context import RankLaunch
from megascale.errors import UnreachableError
from megascale.job import TrainingJob, parse_job
from megascale.observe.rankfile import Control, Phase, RankFile
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: q}
spec:
  nodes: 1
  ranksPerNode: 1
  steps: 1
  runtime: {command: {args: [sleep, "60"]}}
"""
DAMAGED = {"type": "CheckpointCorruptError", "message": "a shard is damaged"}


async def _no_driver(revision: str) -> str:
    raise UnreachableError(f"no driver is connected to ask for {revision}")


@pytest.mark.parametrize("words", [None, DAMAGED], ids=["at-work", "failed-by-itself"])
def test_a_rank_that_failed_before_it_was_killed_is_heard(
    tmp_path: Path, words: dict[str, str] | None
) -> None:
    run = RunDir(tmp_path / "q")
    run.root.mkdir()
    run.job_file.write_text(MANIFEST)
    told: list[pb.RankExit] = []

    async def main() -> list[int]:
        config = AgentConfig.local(run.root, "n0")
        ranks = Ranks(config, Zygote(engine=False), Manifests(config.job_file, _no_driver), told.append)
        await ranks.launch(
            1, pb.Launch(attempt=1, nodes=1, node_rank=0, store_host="127.0.0.1", store_port=1)
        )
        if words is not None:
            RankFile.open(run.rank_file("n0", 0)).write_exit_report(words)
        return await ranks.kill(1, 10.0)

    assert asyncio.run(main()) == []
    found = [(exit_.exit_code, exit_.HasField("signal"), json.loads(exit_.exit_report)) for exit_ in told]
    assert found == ([] if words is None else [(1, False, words)])


class RecordingZygote:
    """Forks nothing real: a process that sleeps stands for each rank; what it was asked for is kept."""

    def __init__(self) -> None:
        self.launches: list[RankLaunch] = []

    async def fork_rank(self, launch: RankLaunch, _log: Path) -> int:
        self.launches.append(launch)
        return os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)  # noqa: ASYNC221


ORDER = pb.Launch(
    attempt=4,
    node_rank=1,
    nodes=2,
    store_host="127.0.0.1",
    store_port=5,
    resume=pb.Commit(step=20, attempt=3),
    lineage=[
        pb.LineageEntry(attempt=3, resumed_from=pb.Commit(step=10, attempt=1)),
        pb.LineageEntry(attempt=4),
    ],
    tier="memory",
    revision="r1",
    save_every_steps=7,
)
OTHER = {
    "attempt": pb.Launch(attempt=5),
    "node_rank": pb.Launch(node_rank=2),
    "nodes": pb.Launch(nodes=3),
    "store_host": pb.Launch(store_host="127.0.0.2"),
    "store_port": pb.Launch(store_port=6),
    "resume": pb.Launch(resume=pb.Commit(step=21)),
    "lineage": pb.Launch(lineage=[pb.LineageEntry(attempt=2)]),
    "tier": pb.Launch(tier="durable"),
    "revision": pb.Launch(revision="r2"),
    "save_every_steps": pb.Launch(save_every_steps=8),
}
MEGATRON = MANIFEST.replace(
    '{command: {args: [sleep, "60"]}}',
    "{megatron: {model: {preset: tiny}, data: {path: d, sequenceLength: 8, microBatch: 1, globalBatch: 4}}}",
)


async def launched(tmp_path: Path, order: pb.Launch) -> RankLaunch:
    """What a rank is told for an order; revision r2 has twice the steps of r1."""

    class Known:
        async def get(self, revision: str) -> TrainingJob:
            return parse_job(MEGATRON if revision == "r1" else MEGATRON.replace("steps: 1", "steps: 2"))

    zygote = RecordingZygote()
    run = RunDir(tmp_path / "q")
    config = AgentConfig.local(run.root, "n0")
    ranks = Ranks(config, cast(Any, zygote), cast(Any, Known()), lambda _exit: None)
    await ranks.launch(3, order)
    await ranks.kill(order.attempt, 10.0)
    (launch,) = zygote.launches
    return launch


def test_there_is_another_value_for_every_field_of_a_launch() -> None:
    assert set(OTHER) == {field.name for field in pb.Launch.DESCRIPTOR.fields}
    assert {field.name for field, _ in ORDER.ListFields()} == set(OTHER)


@pytest.mark.parametrize("name", OTHER)
def test_every_field_of_a_launch_reaches_the_rank(tmp_path: Path, name: str) -> None:
    changed = pb.Launch()
    changed.CopyFrom(ORDER)
    changed.MergeFrom(OTHER[name])
    before, after = (asyncio.run(launched(tmp_path, order)) for order in (ORDER, changed))
    assert before != after


def test_what_a_rank_is_told(tmp_path: Path) -> None:
    launch = asyncio.run(launched(tmp_path, ORDER))
    assert (launch.term, launch.attempt, launch.rank, launch.world_size) == (3, 4, 1, 2)
    assert (launch.resume, launch.tier, launch.save_every_steps) == (Commit(20, 3), "memory", 7)
    assert launch.lineage == {3: Commit(10, 1), 4: None}
    assert (launch.store_host, launch.store_port, launch.node, launch.node_rank) == ("127.0.0.1", 5, "n0", 1)
    assert (launch.local_rank, launch.local_world_size, launch.job) == (0, 1, "q")
    assert launch.spec["spec"]["steps"] == 1
    assert launch.rank_file == tmp_path / "q" / "ranks" / "n0-0.rank"
    assert launch.snapshot_folders[-1] == tmp_path / "q" / "snapshots" / "n0"
    assert launch.interface == "lo"


def test_a_launch_whose_manifest_cannot_be_had_starts_nothing(tmp_path: Path) -> None:
    zygote = RecordingZygote()
    config = AgentConfig.local(tmp_path, "n0")
    ranks = Ranks(config, cast(Any, zygote), Manifests(config.job_file, _no_driver), lambda _exit: None)
    with pytest.raises(UnreachableError, match="no driver is connected to ask for r1"):
        asyncio.run(ranks.launch(3, ORDER))
    assert (ranks.attempt, ranks.alive, zygote.launches) == (0, [], [])


class Stage:
    """A node whose two ranks are sleeping processes."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / "q")
        self.told: list[pb.RankExit] = []
        self.zygote = RecordingZygote()
        job = parse_job(MEGATRON.replace("ranksPerNode: 1", "ranksPerNode: 2"))

        class Known:
            async def get(self, _revision: str) -> TrainingJob:
                return job

        config = AgentConfig.local(self.run.root, "n0")
        self.ranks = Ranks(config, cast(Any, self.zygote), cast(Any, Known()), self.told.append)

    def file(self, local_rank: int) -> RankFile:
        return RankFile.open(self.run.rank_file("n0", local_rank))

    async def launch(self, attempt: int = 4) -> None:
        order = pb.Launch(attempt=attempt, nodes=2, node_rank=1, store_host="127.0.0.1", store_port=1)
        await self.ranks.launch(3, order)


def play(tmp_path: Path, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        async with asyncio.timeout(30.0):
            try:
                await scenario(stage)
            finally:
                await stage.ranks.kill(10**6, 10.0)

    asyncio.run(main())


def test_a_node_without_a_launch_has_nothing_to_tell(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        ranks = stage.ranks
        assert (ranks.attempt, ranks.alive, ranks.exits, ranks.report()) == (0, [], [], pb.Report())
        assert (ranks.log_matches(), ranks.last_lines(0, 5), ranks.segments()) == ([], [], None)
        assert await ranks.evidence() == []
        await asyncio.wait_for(ranks.ended(), 5.0)
        ranks.request_save(0, then_stop=True)
        assert await ranks.kill(0, 5.0) == []

    play(tmp_path, scenario)


def test_every_rank_of_a_node_is_told_its_place(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.ranks.launch(3, pb.Launch(attempt=4, nodes=3, node_rank=2))
        first, second = stage.zygote.launches
        assert [(one.rank, one.local_rank) for one in (first, second)] == [(4, 0), (5, 1)]
        for one in (first, second):
            sizes = (one.world_size, one.local_world_size, one.node_rank, one.tier, one.resume)
            assert repr(sizes) == "(6, 2, 2, 'durable', None)"  # 6.0 would reach the program as "6.0"
            assert one.rank_file == stage.run.rank_file("n0", one.local_rank)
        assert [stage.file(local).read().rank for local in (0, 1)] == [4, 5]

    play(tmp_path, scenario)


def test_a_repeated_launch_changes_nothing_and_a_later_one_replaces_the_ranks(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        assert (stage.ranks.alive, stage.ranks.attempt) == ([2, 3], 4)
        await stage.launch()
        assert len(stage.zygote.launches) == 2
        before = [rank.pid for rank in stage.ranks.report().ranks]
        await stage.launch(5)
        assert [process_state(pid) for pid in before] == ["", ""]
        assert len(stage.zygote.launches) == 4
        assert (stage.ranks.alive, stage.ranks.attempt, stage.told) == ([2, 3], 5, [])

    play(tmp_path, scenario)


def test_ranks_of_a_later_attempt_are_not_killed(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        assert await stage.ranks.kill(3, 5.0) == []
        assert stage.ranks.alive == [2, 3]
        assert await stage.ranks.kill(4, 5.0) == []
        assert stage.ranks.alive == []
        await asyncio.wait_for(stage.ranks.ended(), 5.0)

    play(tmp_path, scenario)


def test_ranks_are_asked_to_save_and_only_those_of_the_attempt(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        stage.ranks.request_save(3, then_stop=True)
        assert stage.file(0).control == Control.NONE
        stage.ranks.request_save(4, then_stop=False)
        assert [stage.file(n).control for n in (0, 1)] == [Control.SAVE] * 2
        stage.ranks.request_save(4, then_stop=True)
        assert [stage.file(n).control for n in (0, 1)] == [Control.SAVE_AND_EXIT] * 2

    play(tmp_path, scenario)


def test_a_rank_that_ends_by_itself_is_told_with_what_it_left(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        stage.file(1).update(step=8)
        stage.file(1).write_exit_report(DAMAGED)
        stage.ranks._ranks[3].log.inlet.write_text("".join(f"line {n}\n" for n in range(20)))
        os.kill(stage.ranks.report().ranks[1].pid, signal.SIGTERM)
        while not stage.told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (report,) = stage.told
        assert (report.rank, report.attempt, report.signal, report.step) == (3, 4, signal.SIGTERM, 8)
        assert json.loads(report.exit_report) == DAMAGED
        assert list(report.log_tail) == [f"line {n}" for n in range(12, 20)]
        assert not report.injected
        assert abs(report.at - time.time()) < 10.0
        assert stage.ranks.exits == [report]
        assert stage.ranks.alive == [2]
        assert stage.ranks.last_lines(3, 2) == ["line 18", "line 19"]
        assert stage.ranks.last_lines(9, 2) == []

    play(tmp_path, scenario)


def test_a_report_has_the_records_of_all_ranks_in_unix_time(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        now = time.monotonic()
        stage.file(0).update(
            step=8, phase=Phase.FORWARD, micro_batch=2, tokens=100, loss=2.5, grad_norm=1.5, step_seconds=0.5,
            stall_seconds=0.25, progress_at=now, groups_at=now - 3.0, loaded_at=now - 2.0,
            first_step_at=now - 1.0, saved_step=6, saved_attempt=4, flops=4.0, peak_flops=8.0,
            snapshot_step=8, snapshot_attempt=4, snapshot_seconds=0.125,
        )  # fmt: skip
        full, fresh = stage.ranks.report().ranks
        assert (full.rank, full.step, full.phase, full.micro_batch, full.tokens) == (2, 8, "forward", 2, 100)
        assert (full.loss, full.grad_norm, full.step_seconds, full.stall_seconds) == (2.5, 1.5, 0.5, 0.25)
        assert full.progress_at == pytest.approx(time.time(), abs=10.0)
        assert full.progress_at - full.groups_at == pytest.approx(3.0)
        assert full.progress_at - full.loaded_at == pytest.approx(2.0)
        assert full.progress_at - full.first_step_at == pytest.approx(1.0)
        assert (full.saved_step, full.saved_attempt, full.flops, full.peak_flops) == (6, 4, 4.0, 8.0)
        assert (full.snapshot_step, full.snapshot_attempt, full.snapshot_seconds) == (8, 4, 0.125)
        assert (fresh.rank, fresh.step, fresh.phase, fresh.progress_at, fresh.saved_step) == (
            3,
            0,
            "startup",
            0.0,
            -1,
        )
        assert not fresh.HasField("loss")
        assert not fresh.HasField("grad_norm")

    play(tmp_path, scenario)


def test_evidence_of_a_stopped_rank_has_its_state_and_no_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stack(pid: int) -> list[str]:
        return [f"stack of {pid}"]

    monkeypatch.setattr(module, "stack_of", stack)

    async def scenario(stage: Stage) -> None:
        await stage.launch()
        pids = [rank.pid for rank in stage.ranks.report().ranks]
        stage.file(0).update(step=8, phase=Phase.BACKWARD, micro_batch=1, collectives=44)
        os.kill(pids[1], signal.SIGSTOP)
        while process_state(pids[1]) != "T":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        sleeping, stopped = await stage.ranks.evidence()
        assert (sleeping.rank, sleeping.step, sleeping.phase, sleeping.micro_batch) == (2, 8, "backward", 1)
        assert (sleeping.collectives, list(sleeping.stack)) == (44, [f"stack of {pids[0]}"])
        assert (stopped.rank, stopped.process_state, stopped.collectives, list(stopped.stack)) == (
            3,
            "T",
            -1,
            [],
        )

    play(tmp_path, scenario)


def test_the_store_of_an_attempt_is_served_once(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        asked: list[str] = []

        async def fork_store(host: str) -> tuple[int, int]:
            asked.append(host)
            return os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ), 100 + len(asked)  # noqa: ASYNC221

        stage.zygote.fork_store = fork_store  # type: ignore[attr-defined]
        assert [await stage.ranks.host_store(4) for _ in range(2)] == [101, 101]
        assert await stage.ranks.host_store(5) == 102
        await stage.ranks.kill(4, 5.0)
        assert await stage.ranks.host_store(5) == 102
        await stage.ranks.kill(5, 5.0)
        assert await stage.ranks.host_store(5) == 103
        assert asked == ["127.0.0.1"] * 3

    play(tmp_path, scenario)


def test_a_store_or_an_older_attempt_that_does_not_end_is_waited_for_for_5_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[list[int], float]] = []

    async def scenario(stage: Stage) -> None:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)  # noqa: ASYNC221

        async def fork_store(_host: str) -> tuple[int, int]:
            return pid, 100

        async def recorded(children: list[Child], deadline_s: float) -> list[Child]:
            waits.append(([child.pid for child in children], deadline_s))
            return await kill_all(children, deadline_s)

        stage.zygote.fork_store = fork_store  # type: ignore[attr-defined]
        await stage.ranks.host_store(4)
        monkeypatch.setattr(module, "kill_all", recorded)
        await stage.ranks.kill(4, 7.5)
        assert waits == [([], 7.5), ([pid], 5.0)]
        await stage.launch(5)
        assert waits[2:] == [([], 5.0)]
        assert process_state(pid) == ""

    play(tmp_path, scenario)


def test_log_lines_that_mean_something_name_their_rank(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch()
        log = stage.ranks._ranks[3].log
        log.inlet.write_text("RuntimeError: CUDA error: an illegal memory access was encountered\n")
        log.drain()
        (match,) = stage.ranks.log_matches()
        assert (match.rank, match.attempt, match.category) == (3, 4, "user_code")
        verdict = LineClassifier(rule_set()).feed(match.line)
        assert (match.rule, match.action) == (verdict.rule, verdict.action)
        assert "illegal memory access" in match.line
        assert abs(match.at - time.time()) < 10.0
        assert stage.ranks.log_matches() == []

    play(tmp_path, scenario)
