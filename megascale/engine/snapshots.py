"""Takes snapshots of a rank's state in its node's memory and resumes from one.

A rank copies everything it holds, replicated parts included, so that the process that replaces it on the same
node needs no other rank's snapshot. docs/decisions/0007-snapshots-in-memory.md has the reasons.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Final

import psutil
import torch
from torch import Tensor, distributed

from megascale.checkpoint import Piece
from megascale.checkpoint.snapshot import BUFFERS, SnapshotFile, SnapshotLayout
from megascale.checkpoint.snapshot_folders import SHARED_MEMORY, snapshot_file
from megascale.core.contract.lineage import Commit, is_on_lineage
from megascale.engine.cadence import SnapshotCadence
from megascale.engine.context import RankLaunch
from megascale.engine.plan import Plan
from megascale.engine.rng import RngText, restore_rng
from megascale.engine.sharded_state import pieces
from megascale.engine.state import EngineState
from megascale.errors import CheckpointCorruptError
from megascale.observe.alerts import alert

_ALIGN: Final = 64
_MEMORY_SHARE: Final = 0.5
"""Largest share of the node's available memory that its snapshots may take."""


class Snapshots:
    """Takes snapshots of the state and restores it; `take` is called by all ranks after the same steps."""

    def __init__(
        self,
        launch: RankLaunch,
        state: EngineState,
        file: SnapshotFile,
        held: list[Piece],
        plan: Plan,
    ) -> None:
        self._launch, self._state, self._file, self._plan = launch, state, file, plan
        self._live = [piece.tensor for piece in held]
        self._copies = [_views(file, index, self._live) for index in range(BUFFERS)]
        self._rng = RngText()
        self._cadence = SnapshotCadence()
        self._newest = -1
        self._forget_other_branches()

    @classmethod
    def open(cls, launch: RankLaunch, state: EngineState, plan: Plan) -> Snapshots | None:
        """Open this rank's snapshot file, with snapshots of earlier attempts if it has any; collective.

        Returns:
            None on all ranks if any of them has no room for its file.
        """
        held = pieces(state)
        layout = SnapshotLayout(
            launch.job, launch.rank, launch.world_size, _digest(held), _offsets([p.tensor for p in held])[-1]
        )
        file = _open_file(launch, layout)
        has_file = torch.tensor([int(file is not None)], device=state.device)
        distributed.all_reduce(has_file, op=distributed.ReduceOp.MIN, group=state.groups.world)
        return cls(launch, state, file, held, plan) if file is not None and has_file.item() else None

    def _forget_other_branches(self) -> None:
        """Invalidate snapshots that are not on the lineage of this attempt, which must never be restored.

        `--fresh` starts to count attempts at 1 again, so the number of the attempt is not enough.
        """
        launch = self._launch
        for snapshot in self._file.snapshots():
            earlier = snapshot.attempt < launch.attempt
            if not earlier or not is_on_lineage(snapshot.commit, launch.lineage, launch.attempt):
                self._file.begin(snapshot.index)

    def resume(self, commit: Commit) -> None:
        """Restore the state of the snapshot of `commit`; collective.

        Raises:
            CheckpointCorruptError: this rank has no such snapshot, or its checksums do not match.
        """
        found = next((s for s in self._file.snapshots() if s.commit == commit), None)
        problem = "there is no whole copy of this layout" if found is None else self._file.damage(found)
        if found is None or problem:
            raise CheckpointCorruptError(
                f"snapshot in memory of step {commit.step}: {problem}",
                step=commit.step,
                attempt=commit.attempt,
                tier="memory",
            )
        torch._foreach_copy_(self._live, self._copies[found.index])
        saved = self._file.state(found)
        self._state.inner.updates, self._state.step = int(saved["updates"]), int(saved["step"])
        self._state.publish_masters()
        restore_rng(saved["rng"])
        self._newest = found.index

    def take(self, step: int, step_s: float) -> float:
        """Copy the state after `step` if a snapshot is due.

        Args:
            step_s: duration of the step.

        Returns:
            Seconds this rank was blocked.
        """
        if not self._cadence.is_due(step, step_s):
            return 0.0
        start = time.monotonic()
        # The other buffer, which was written or resumed from last, stays whole while this one is written.
        index = (self._newest + 1) % BUFFERS
        self._file.begin(index)
        torch._foreach_copy_(self._copies[index], self._live)
        self._file.finish(
            index,
            term=self._launch.term,
            attempt=self._launch.attempt,
            step=step,
            state=self._state_text(step),
        )
        self._newest = index
        if self._cadence.took(step, time.monotonic() - start):
            self._settle()
        return time.monotonic() - start

    def _state_text(self, step: int) -> bytes:
        position = self._plan.position_after(step).as_json()
        head = json.dumps({"step": step, "updates": self._state.inner.updates, "data": position})
        return head[:-1].encode() + b', "rng": ' + self._rng.text() + b"}"

    def _settle(self) -> None:
        """Agree on one cadence, the one that the rank with the slowest copies needs; collective."""
        share = torch.tensor([self._cadence.share], device=self._state.device)
        distributed.all_reduce(share, op=distributed.ReduceOp.MAX, group=self._state.groups.world)
        if self._cadence.settle(share.item()) and self._launch.rank == 0:
            every = self._cadence.every_steps
            print(
                f"snapshots every {'step' if every == 1 else f'{every} steps'}: one takes {share.item():.2%}"
                f" of a step, {self._file.layout.data_bytes / 2**20:.1f} MiB per rank",
                flush=True,
            )


def _open_file(launch: RankLaunch, layout: SnapshotLayout) -> SnapshotFile | None:
    """Open or create the file in the first of the launch's folders with room.

    Raises an alert if that folder is on disk, or if there is none.
    """
    problems = []
    for folder in launch.snapshot_folders:
        path = snapshot_file(folder, launch.local_rank)
        file = SnapshotFile.adopt(path, layout)
        if file is not None:
            return file
        try:
            _check_memory(layout.file_bytes * launch.local_world_size)
            file = SnapshotFile.create(path, layout)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
            continue
        if not folder.is_relative_to(SHARED_MEMORY):
            why = "; ".join(problems) or f"{SHARED_MEMORY} is not a tmpfs that this user may write to"
            alert("snapshotsOnDisk", f"snapshots go to {folder}: {why}")
        return file
    alert("noSnapshots", f"no room for {layout.file_bytes >> 20} MiB of snapshots: {'; '.join(problems)}")
    return None


def _views(file: SnapshotFile, index: int, live: list[Tensor]) -> list[Tensor]:
    """Views of buffer `index`, one per live tensor, in the same order."""
    data, offsets = file.data(index), _offsets(live)
    return [
        torch.frombuffer(data, dtype=tensor.dtype, count=tensor.numel(), offset=at)
        for tensor, at in zip(live, offsets[:-1], strict=True)
    ]


def _offsets(live: list[Tensor]) -> list[int]:
    """Byte offset of each tensor in a buffer, then the end of the last one."""
    offsets = [0]
    for tensor in live:
        size = tensor.numel() * tensor.element_size()
        offsets.append(offsets[-1] + -(-size // _ALIGN) * _ALIGN)
    return offsets


def _digest(held: list[Piece]) -> str:
    table = [(p.name, p.global_shape, p.offset, p.shape, p.dtype_name) for p in held]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _check_memory(needed: int) -> None:
    """Refuse to take more memory than is available.

    The size of a tmpfs is only a limit: filling it can make the kernel kill another process.

    Raises:
        OSError: too little is free.
    """
    available = psutil.virtual_memory().available
    if needed > _MEMORY_SHARE * available:
        raise OSError(f"{needed >> 20} MiB are needed, {available >> 20} MiB of memory are free")
