"""What an agent tells of ranks that it kills."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from megascale.agent.config import AgentConfig
from megascale.agent.ranks import Ranks
from megascale.agent.zygote_client import Zygote
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


@pytest.mark.parametrize("words", [None, DAMAGED], ids=["at-work", "failed-by-itself"])
def test_a_rank_that_failed_before_it_was_killed_is_heard(
    tmp_path: Path, words: dict[str, str] | None
) -> None:
    run = RunDir(tmp_path / "q")
    run.root.mkdir()
    run.job_file.write_text(MANIFEST)
    told: list[pb.RankExit] = []

    async def main() -> list[int]:
        ranks = Ranks(AgentConfig.local(run.root, "n0"), Zygote(engine=False), told.append)
        await ranks.launch(
            1, pb.Launch(attempt=1, nodes=1, node_rank=0, store_host="127.0.0.1", store_port=1)
        )
        if words is not None:
            RankFile.open(run.rank_file("n0", 0)).write_exit_report(words)
        return await ranks.kill(1, 10.0)

    assert asyncio.run(main()) == []
    found = [(exit_.exit_code, exit_.HasField("signal"), json.loads(exit_.exit_report)) for exit_ in told]
    assert found == ([] if words is None else [(1, False, words)])
