"""The JSON documents of a checkpoint: manifest, rank index and commit record.

Keys are camelCase on disk. Sizes are in bytes; `crc32` is zlib's. It was measured at 4 GB/s, ten times the
rate of durable writes on the same machine, so a faster checksum would not make saving faster.
"""

from __future__ import annotations

import hashlib
from math import prod
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError

FORMAT_VERSION: Final = 1

Size = Annotated[int, Field(ge=0, lt=1 << 62)]
Dims = tuple[Size, ...]


class _Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


class CommitId(_Document):
    """A commit as JSON."""

    attempt: Size
    step: Size

    @classmethod
    def of(cls, commit: Commit | None) -> CommitId | None:
        return None if commit is None else cls(attempt=commit.attempt, step=commit.step)

    @property
    def commit(self) -> Commit:
        return Commit(self.step, self.attempt)


class StoredBox(_Document):
    """A box of a tensor in a shard file.

    Attributes:
        offset, shape: the box, in elements of the global tensor.
        file: index into the manifest's `files`, which equals the rank that wrote it.
        byte_offset, bytes: position and size of its values in that file.
        crc32: checksum of those bytes.
    """

    offset: Dims
    shape: Dims
    file: Size
    byte_offset: Size
    bytes: Size
    crc32: Size


class StoredTensor(_Document):
    """A global tensor and the boxes that it consists of, which do not overlap."""

    dtype: str
    shape: Dims
    boxes: tuple[StoredBox, ...]


class ShardFile(_Document):
    """A file in the folder of the checkpoint."""

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    bytes: Size


class RankIndex(_Document):
    """The index of one rank's shard; rank 0 joins all of them into the manifest."""

    rank: Size
    file: ShardFile
    tensors: dict[str, StoredTensor]
    rank_state: dict[str, JsonValue]


class Manifest(_Document):
    """Everything of a checkpoint except its tensor values.

    Attributes:
        step, attempt: the state after `step`, written by `attempt`.
        parent: the commit that the attempt resumed from; None = it started at step 0.
        layout: the parallel layout that wrote it, for information only.
        files: shard files, by rank.
        tensors: canonical name -> tensor.
        job_state: state of the whole job (data cursor, schedules...).
        rank_states: state of each rank (random generators...), by rank.
    """

    version: Literal[1] = FORMAT_VERSION
    job: str | None = None
    step: Size
    attempt: Size
    parent: CommitId | None
    layout: dict[str, JsonValue]
    files: tuple[ShardFile, ...]
    tensors: dict[str, StoredTensor]
    job_state: dict[str, JsonValue]
    rank_states: tuple[dict[str, JsonValue], ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class CommitRecord(_Document):
    """The file whose exclusive creation makes a checkpoint exist.

    Attributes:
        manifest_sha256: digest of `manifest.json`.
        bytes: size of all shard files.
        files: number of shard files.
        committed_at: seconds since the epoch.
    """

    version: Literal[1] = FORMAT_VERSION
    step: Size
    attempt: Size
    parent: CommitId | None
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Size
    files: Size
    committed_at: float

    @property
    def commit(self) -> Commit:
        return Commit(self.step, self.attempt)


def digest(manifest: bytes) -> str:
    """The digest by which a commit record identifies its manifest."""
    return hashlib.sha256(manifest).hexdigest()


def parse_manifest(raw: bytes, record: CommitRecord, path: str) -> Manifest:
    """Parse the manifest of a commit.

    Raises:
        CheckpointCorruptError: `raw` differs from what was committed.
    """
    found = digest(raw)
    if found != record.manifest_sha256:
        raise CheckpointCorruptError(
            f"{path}: SHA-256 is {found}, the commit has {record.manifest_sha256}",
            step=record.step,
            attempt=record.attempt,
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise CheckpointCorruptError(
            f"{path}: {error.errors()[0]['msg']}", step=record.step, attempt=record.attempt
        ) from error
    if (manifest.step, manifest.attempt) != (record.step, record.attempt):
        raise CheckpointCorruptError(
            f"{path}: is of step {manifest.step} attempt {manifest.attempt}",
            step=record.step,
            attempt=record.attempt,
        )
    return manifest


def incomplete_tensor(tensors: dict[str, StoredTensor]) -> str | None:
    """Describes the first tensor whose boxes do not add up to all of it; None if there is none."""
    for name, tensor in tensors.items():
        stored = sum(prod(box.shape) for box in tensor.boxes)
        if stored != prod(tensor.shape):
            return f"{name}: the ranks' pieces hold {stored} of {prod(tensor.shape)} elements"
    return None
