"""Restores pieces of any layout from the boxes of a commit, which another layout may have written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from megascale.checkpoint.boxes import Box, intersect, slices_within
from megascale.checkpoint.manifest import Manifest, StoredBox
from megascale.checkpoint.pieces import Piece
from megascale.checkpoint.shards import ShardReader
from megascale.checkpoint.store import CheckpointStore, folder_of
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError, SettingsError


@dataclass(frozen=True, slots=True)
class Restored:
    """The contents of a commit other than tensors.

    Attributes:
        job_state: state of the whole job.
        rank_states: by rank of the layout that saved it.
        layout: that layout, as passed to `save`.
    """

    job_state: dict[str, Any]
    rank_states: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Copy:
    piece: Piece
    part: Box


@dataclass(frozen=True, slots=True)
class _Read:
    box: StoredBox
    copies: list[_Copy]


def restore(
    store: CheckpointStore, commit: Commit, pieces: Sequence[Piece], manifest: Manifest | None = None
) -> Restored:
    """Fill every piece from the commit; each rank calls it independently, with the pieces that it needs.

    Only boxes that overlap a piece are read, each once, and each is checked before it is copied. If this
    raises, some pieces may have been overwritten: restore them again from another commit.

    Args:
        manifest: the commit's, if the caller has read it.

    Raises:
        CheckpointCorruptError: a file is missing, cut short or has a wrong byte; names file and offset.
        SettingsError: it is of another model: it lacks a tensor, or has it with another shape or dtype.
        UnreachableError: the file system returns an error.
    """
    manifest = manifest or store.manifest(commit)
    for file, reads in sorted(_plan(manifest, commit, pieces).items()):
        with ShardReader(store.storage, folder_of(commit), manifest.files[file], commit) as reader:
            for read in sorted(reads, key=lambda read: read.box.byte_offset):
                _copy(reader.read(read.box), read)
    return Restored(manifest.job_state, list(manifest.rank_states), manifest.layout)


def _plan(manifest: Manifest, commit: Commit, pieces: Sequence[Piece]) -> dict[int, list[_Read]]:
    """File index -> reads. Mismatches are found here, before any piece is overwritten."""
    by_name: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_name[piece.name].append(piece)
    plan: dict[int, list[_Read]] = defaultdict(list)
    for name, wanted in by_name.items():
        _check_same_tensor(manifest, commit, wanted)
        found = dict.fromkeys(range(len(wanted)), 0)
        for box in manifest.tensors[name].boxes:
            stored = (box.offset, box.shape)
            copies = []
            for index, piece in enumerate(wanted):
                part = intersect(stored, piece.box)
                if part:
                    copies.append(_Copy(piece, part))
                    found[index] += prod(part[1])
            if copies:
                plan[box.file].append(_Read(box, copies))
        for index, piece in enumerate(wanted):
            if found[index] != prod(piece.shape):
                raise CheckpointCorruptError(
                    f"manifest of step {commit.step}: the boxes of {name} hold {found[index]} of the"
                    f" {prod(piece.shape)} elements at {piece.offset}+{piece.shape}",
                    step=commit.step,
                    attempt=commit.attempt,
                )
    return plan


def _check_same_tensor(manifest: Manifest, commit: Commit, wanted: Sequence[Piece]) -> None:
    stored = manifest.tensors.get(wanted[0].name)
    where = f"checkpoint of step {commit.step} (attempt {commit.attempt})"
    advice = "it was saved by another model; check spec.runtime.megatron.model or start with another name"
    if stored is None:
        raise SettingsError(f"{where} has no tensor {wanted[0].name!r}: {advice}")
    for piece in wanted:
        if (stored.shape, stored.dtype) != (piece.global_shape, piece.dtype_name):
            raise SettingsError(
                f"{where}: {piece.name!r} is {stored.dtype} {stored.shape},"
                f" this job needs {piece.dtype_name} {piece.global_shape}: {advice}"
            )


def _copy(data: memoryview, read: _Read) -> None:
    import torch

    stored = (read.box.offset, read.box.shape)
    for copy in read.copies:
        target = copy.piece.tensor.detach()
        values = torch.frombuffer(data, dtype=target.dtype).view(read.box.shape)
        part = values[slices_within(copy.part, stored)]
        target.view(copy.piece.shape)[slices_within(copy.part, copy.piece.box)].copy_(part)
