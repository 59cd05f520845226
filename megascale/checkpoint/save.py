"""Saves a checkpoint: all ranks write their pieces, then rank 0 commits."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from megascale.checkpoint.manifest import (
    CommitId,
    CommitRecord,
    Manifest,
    RankIndex,
    ShardFile,
    StoredBox,
    StoredTensor,
    digest,
    incomplete_tensor,
)
from megascale.checkpoint.pieces import Piece
from megascale.checkpoint.shards import ShardWriter
from megascale.checkpoint.store import CheckpointStore, folder_of, shard_name
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointSaveError, MegascaleError


@dataclass(frozen=True, slots=True)
class SaveReport:
    """Bytes that this rank wrote and duration of the save; 0 bytes if the step was saved before."""

    bytes: int
    seconds: float


def save(
    store: CheckpointStore,
    *,
    step: int,
    attempt: int,
    parent: Commit | None,
    pieces: Sequence[Piece],
    job_state: dict[str, Any],
    rank_state: dict[str, Any],
    layout: dict[str, Any],
    rank: int,
    world_size: int,
    agree: Callable[[bool], bool],
    at_point: Callable[[str], None],
    job: str | None = None,
) -> SaveReport:
    """Save the state after `step`; called by all ranks, which return together.

    Args:
        parent: the commit this attempt resumed from.
        pieces: what this rank saves; over all ranks they cover every tensor exactly once.
        job_state: JSON, taken from rank 0. rank_state: JSON, stored for each rank.
        layout: the parallel layout, stored for information only.
        agree: collective AND over all ranks.
        at_point: called with "save" half-way through this rank's pieces, and with "commit" once all shards
            are durable, before the commit; for fault injection.

    Raises:
        CheckpointSaveError: on all ranks, if any of them failed. Earlier checkpoints are not affected, and
            partial files are removed if possible.
    """
    started = time.monotonic()
    commit = Commit(step, attempt)
    if agree(store.has(commit)):
        return SaveReport(0, time.monotonic() - started)
    shard = _RankSave(store, commit, rank)
    problem: Exception | None = None
    try:
        shard.write(pieces, rank_state, at_point)
    except OSError as error:
        problem = error
    if not agree(problem is None):
        shard.abandon(problem)
    at_point("commit")
    try:
        if rank == 0:
            _commit(store, commit, parent, world_size, {"job": job, "job_state": job_state, "layout": layout})
    except (OSError, MegascaleError) as error:
        problem = error
    if not agree(problem is None):
        shard.abandon(problem)
    with contextlib.suppress(OSError):  # its content is in the manifest now
        store.storage.remove(_index_name(commit, rank))
    return SaveReport(shard.bytes, time.monotonic() - started)


class _RankSave:
    """The files of one rank in one save."""

    def __init__(self, store: CheckpointStore, commit: Commit, rank: int) -> None:
        self._store = store
        self._commit = commit
        self._rank = rank
        self._created: list[str] = []
        self.bytes = 0

    def write(
        self, pieces: Sequence[Piece], rank_state: dict[str, Any], at_point: Callable[[str], None]
    ) -> None:
        """Write the shard, durable on return, and its index.

        Raises:
            OSError: the file system returns an error.
        """
        storage = self._store.storage
        name = shard_name(self._commit, self._rank)
        half = len(pieces) // 2
        with ShardWriter(storage, name, self._rank) as writer:
            self._created.append(name)
            for piece in pieces[:half]:
                writer.write(piece)
            at_point("save")
            for piece in pieces[half:]:
                writer.write(piece)
            tensors = writer.finish()
        self.bytes = writer.bytes
        index = RankIndex(
            rank=self._rank,
            file=ShardFile(name=name.rpartition("/")[2], bytes=writer.bytes),
            tensors=tensors,
            rank_state=rank_state,
        )
        index_name = _index_name(self._commit, self._rank)
        self._created.append(index_name)
        storage.write(index_name, index.to_bytes(), durable=False)  # only rank 0 reads it, in this save
        storage.sync_entries(folder_of(self._commit))

    def abandon(self, problem: Exception | None) -> NoReturn:
        """Remove the files that this rank created, unless the commit exists, and raise the error."""
        if self._rank == 0:
            self._created += [
                f"{folder_of(self._commit)}/{name}" for name in ("manifest.json", "commit.json")
            ]
        if not self._store.has(self._commit):
            for name in self._created:
                with contextlib.suppress(OSError):  # pruned with its attempt later
                    self._store.storage.remove(name)
        where = f"checkpoint of step {self._commit.step} was not saved to {self._store.uri}"
        if problem is None:
            raise CheckpointSaveError(f"{where}: another rank failed, see its log")
        raise CheckpointSaveError(f"{where}: {problem}") from problem


def _index_name(commit: Commit, rank: int) -> str:
    return f"{folder_of(commit)}/rank-{rank}.json"


def _commit(
    store: CheckpointStore, commit: Commit, parent: Commit | None, world_size: int, shared: dict[str, Any]
) -> None:
    indexes = [_read_index(store, _index_name(commit, rank)) for rank in range(world_size)]
    tensors = _join(indexes)
    problem = incomplete_tensor(tensors)
    if problem:
        raise CheckpointSaveError(problem)
    manifest = Manifest(
        step=commit.step,
        attempt=commit.attempt,
        parent=CommitId.of(parent),
        files=tuple(index.file for index in indexes),
        tensors=tensors,
        rank_states=tuple(index.rank_state for index in indexes),
        **shared,
    )
    raw = manifest.to_bytes()
    record = CommitRecord(
        step=commit.step,
        attempt=commit.attempt,
        parent=manifest.parent,
        manifest_sha256=digest(raw),
        bytes=manifest.bytes,
        files=len(manifest.files),
        committed_at=time.time(),
    )
    store.publish(raw, record)


def _read_index(store: CheckpointStore, name: str) -> RankIndex:
    try:
        return RankIndex.model_validate_json(store.storage.read(name))
    except ValidationError as error:
        raise CheckpointSaveError(f"{name}: {error.errors()[0]['msg']}") from error


def _join(indexes: Sequence[RankIndex]) -> dict[str, StoredTensor]:
    boxes: dict[str, list[StoredBox]] = defaultdict(list)
    known: dict[str, StoredTensor] = {}
    for index in indexes:
        for name, tensor in index.tensors.items():
            first = known.setdefault(name, tensor)
            if (first.dtype, first.shape) != (tensor.dtype, tensor.shape):
                raise CheckpointSaveError(
                    f"{name}: rank {index.rank} has {tensor.dtype} {tensor.shape},"
                    f" others have {first.dtype} {first.shape}"
                )
            boxes[name] += tensor.boxes
    return {
        name: StoredTensor(dtype=tensor.dtype, shape=tensor.shape, boxes=tuple(boxes[name]))
        for name, tensor in known.items()
    }
