"""Saves durable checkpoints of a running rank and resumes from one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

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

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 15.0


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

    def save(self, step: int) -> bool:
        """Save and commit the state after `step`; returns whether that succeeded, the same on all ranks.

        A save that fails raises an alert and leaves training untouched.
        """
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
            return False
        self._rank_file.update(saved_step=step, saved_attempt=launch.attempt)
        if launch.rank == 0:
            self._prune()
        return True

    def save_again(self, step: int) -> bool:
        """Try to save for `checkpoint.saveSeconds`, with pauses of 1 to 15 seconds, as `save` does."""
        limit_s = float(self._plan.spec.checkpoint.save_seconds)
        if self._launch.rank == 0:
            alert("lastSaveFailed", f"no later save covers step {step}: it is tried again for {limit_s:g} s")
        return until_saved(lambda: self.save(step), self._agree, limit_s)

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


def until_saved(
    save: Callable[[], bool],
    agree: Callable[[bool], bool],
    limit_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Call `save` after growing pauses until it succeeds; returns False once `limit_s` seconds have passed.

    Args:
        agree: collective AND over all ranks, which give up together.
    """
    end, pause_s = clock() + limit_s, _FIRST_PAUSE_S
    while agree(clock() + pause_s <= end):
        sleep(pause_s)
        if save():
            return True
        pause_s = min(_LONGEST_PAUSE_S, 2.0 * pause_s)
    return False
