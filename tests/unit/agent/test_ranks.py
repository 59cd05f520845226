"""What an agent tells of ranks that it kills."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent.config import AgentConfig
from megascale.agent.manifests import Manifests
from megascale.agent.ranks import Ranks
from megascale.agent.zygote_client import Zygote
from megascale.core.contract.lineage import Commit
from megascale.engine.context import RankLaunch
from megascale.errors import UnreachableError
from megascale.job import TrainingJob, parse_job
from megascale.observe.rankfile import RankFile
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
