"""Finds where an attempt begins: the step, the position in the data, and what the resume changes."""

from __future__ import annotations

from dataclasses import dataclass

from megascale.checkpoint import Manifest
from megascale.checkpoint.snapshot import stored_state
from megascale.checkpoint.snapshot_folders import snapshot_file
from megascale.core.contract.lineage import Commit
from megascale.data.position import Position
from megascale.engine.context import RankLaunch
from megascale.engine.plan import Plan
from megascale.engine.resume import continuation
from megascale.engine.saving import store_of
from megascale.errors import CheckpointCorruptError


@dataclass(frozen=True, slots=True)
class Start:
    """Where an attempt begins.

    Attributes:
        plan: the plan, from the step and the sample on that come next.
        notes: what the resume changes, for people.
        manifest: that of the checkpoint to restore, None if there is none or a snapshot in memory is.
    """

    plan: Plan
    notes: tuple[str, ...] = ()
    manifest: Manifest | None = None


def find_start(launch: RankLaunch, plan: Plan) -> Start:
    """Read where the checkpoint or snapshot of the launch stopped; each rank does it by itself.

    Raises:
        InputError: the manifest changed in a way that the checkpoint does not allow.
        CheckpointCorruptError: the checkpoint or snapshot is damaged or missing.
    """
    commit, megatron = launch.resume, plan.megatron
    if commit is None:
        return Start(plan.going_on(0, Position.start(megatron.data, megatron.seed)))
    manifest = store_of(launch, plan).manifest(commit) if launch.tier == "durable" else None
    stored = manifest.job_state if manifest else _in_memory(launch, commit)
    found = continuation(commit.step, stored, megatron, plan.spec.steps)
    return Start(plan.going_on(commit.step, found.position), found.notes, manifest)


def _in_memory(launch: RankLaunch, commit: Commit) -> dict[str, object]:
    for folder in launch.snapshot_folders:
        state = stored_state(snapshot_file(folder, launch.local_rank), commit)
        if isinstance(state, dict):
            return state
    raise CheckpointCorruptError(
        f"snapshot in memory of step {commit.step}: there is no whole copy of it",
        step=commit.step,
        attempt=commit.attempt,
        tier="memory",
    )
