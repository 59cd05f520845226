"""The launch order of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megascale.core.contract.lineage import Commit


@dataclass(frozen=True, slots=True)
class RankLaunch:
    """Everything that one rank of one attempt is started with; the agent makes it.

    Attributes:
        job: name of the job.
        spec: resolved manifest (`TrainingJob.model_dump(by_alias=True)`).
        term, attempt: the fencing token, which is part of everything the rank writes.
        rank, world_size, local_rank, local_world_size, node_rank: as torchrun sets them.
        node: name of the node.
        store_host, store_port: address of the TCPStore of the attempt.
        run_dir: `runs/<job>`.
        rank_file: path of the rank record, created by the agent.
        resume: the commit to restore; None = start at step 0.
        lineage: attempt -> commit it resumed from, up to and including this attempt.
        tier: where `resume` is: "durable" (the checkpoint store) or "memory" (this rank's own snapshot).
        save_every_steps: steps between checkpoints, 0 = as the manifest says.
        snapshot_folders: folders for snapshots in order of preference; () = take none.
        interface: network interface over which other nodes reach this one; "" = unknown.
    """

    job: str
    spec: dict[str, Any]
    term: int
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: str
    node_rank: int
    store_host: str
    store_port: int
    run_dir: Path
    rank_file: Path
    resume: Commit | None
    lineage: dict[int, Commit | None]
    tier: str = "durable"
    save_every_steps: int = 0
    snapshot_folders: tuple[Path, ...] = ()
    interface: str = ""
