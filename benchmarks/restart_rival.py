"""One rank of the restart benchmark's baseline: the same engine and checkpoints, launched by torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch.distributed import TCPStore

from megascale import engine
from megascale.checkpoint import CheckpointStore
from megascale.engine.context import RankLaunch
from megascale.engine.rank import run_rank
from megascale.job import load_job
from megascale.observe.rankfile import RankFile, RankRecord


def main() -> int:
    """Resume from the newest commit and train, as a torchrun script does."""
    engine.preload()
    run_dir = Path(sys.argv[1])
    job = load_job(run_dir / "job.yaml")
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(host, port, is_master=True, wait_for_workers=False) if hosts_store else None
    resume = max(CheckpointStore(run_dir / "checkpoints").commits(), default=None)
    launch = RankLaunch(
        job=job.metadata.name,
        spec=job.model_dump(by_alias=True, mode="json"),
        term=1,
        attempt=attempt,
        rank=rank,
        world_size=world,
        local_rank=rank,
        local_world_size=world,
        node="node-0",
        node_rank=0,
        store_host=host,
        store_port=port,
        run_dir=run_dir,
        rank_file=run_dir / f"rank-{rank}.rank",
        resume=resume,
        lineage={attempt: resume},
    )
    record = RankRecord(term=1, attempt=attempt, rank=rank)
    code = run_rank(launch, RankFile.create(launch.rank_file, record))
    del store
    return code


if __name__ == "__main__":
    sys.exit(main())
