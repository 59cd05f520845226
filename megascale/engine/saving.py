"""Saves durable checkpoints of a running rank and resumes from one."""

from __future__ import annotations

import time

import torch
from torch import distributed

from megascale.checkpoint import CheckpointStore, Manifest, restore, save
from megascale.core.contract.lineage import Commit
from megascale.engine.context import RankLaunch
from megascale.engine.plan import Plan
from megascale.engine.points import AtPoint
from megascale.engine.resume import settings_of
from megascale.engine.rng import restore_rng, rng_state
from megascale.engine.sharded_state import owned_pieces, pieces
from megascale.engine.state import EngineState
from megascale.errors import CheckpointSaveError
from megascale.observe.alerts import alert
from megascale.observe.rankfile import RankFile


def store_of(launch: RankLaunch, plan: Plan) -> CheckpointStore:
    """The durable checkpoints of the job."""
    return CheckpointStore(plan.spec.checkpoint.uri or launch.run_dir / "checkpoints")


class Checkpointer:
    """Saves the state of all ranks and restores it; every method is collective."""

    def __init__(
        self,
        launch: RankLaunch,
        plan: Plan,
        state: EngineState,
        rank_file: RankFile,
        at_point: AtPoint,
    ) -> None:
        self._launch = launch
        self._plan = plan
        self._state = state
        self._rank_file = rank_file
        self._at_point = at_point
        self._store = store_of(launch, plan)

    def resume(self, commit: Commit, manifest: Manifest | None) -> None:
        """Continue exactly where `commit` was saved: parameters, moments, step and generators.

        The random generators are restored only if the commit was saved by the same number of ranks; otherwise
        they keep the seeds of a new run.

        Args:
            manifest: the commit's; None = it is read.

        Raises:
            CheckpointCorruptError: the checkpoint does not match its checksums.
        """
        restored = restore(self._store, commit, pieces(self._state), manifest)
        self._state.inner.updates = int(restored.job_state["updates"])
        self._state.step = int(restored.job_state["step"])
        self._state.publish_masters()
        if len(restored.rank_states) == self._launch.world_size:
            restore_rng(restored.rank_states[self._launch.rank]["rng"])

    def save(self, step: int) -> float:
        """Save and commit the state after `step`; returns the seconds this rank was blocked.

        A save that fails raises an alert and leaves training untouched.
        """
        start = time.monotonic()
        launch = self._launch
        layout = self._state.groups.layout
        position = self._plan.position_after(step)
        try:
            save(
                self._store,
                step=step,
                attempt=launch.attempt,
                parent=launch.resume,
                pieces=owned_pieces(self._state),
                job_state={
                    "step": step,
                    "updates": self._state.inner.updates,
                    "nextSample": position.next_sample,
                    "data": position.as_json(),
                    "settings": settings_of(self._plan.megatron, self._plan.spec.steps),
                },
                rank_state={"rng": rng_state()},
                layout={"tensor": layout.tensor, "pipeline": layout.pipeline, "data": layout.data},
                rank=launch.rank,
                world_size=launch.world_size,
                agree=self._agree,
                at_point=lambda point: self._at_point(point, step),
                job=launch.job,
            )
        except CheckpointSaveError as error:
            if launch.rank == 0:
                alert("checkpointSaveFailed", f"step {step}: {error}")
            return time.monotonic() - start
        self._rank_file.update(saved_step=step, saved_attempt=launch.attempt)
        if launch.rank == 0:
            self._prune()
        return time.monotonic() - start

    def _agree(self, ok: bool) -> bool:
        """Whether `ok` is True on all ranks; collective."""
        vote = torch.tensor([int(ok)], device=self._state.device)
        distributed.all_reduce(vote, op=distributed.ReduceOp.MIN, group=self._state.groups.world)
        return bool(vote.item())

    def _prune(self) -> None:
        keep = self._plan.spec.checkpoint.keep
        pruned = self._store.prune(keep, self._launch.lineage, self._launch.attempt)
        if pruned.problems:
            alert("checkpointPruneFailed", pruned.summary())
