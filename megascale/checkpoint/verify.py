"""Verifies a commit: reads everything that it refers to and compares checksums."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from megascale.checkpoint.manifest import StoredBox
from megascale.checkpoint.shards import ShardReader
from megascale.checkpoint.soundness import is_tiled
from megascale.checkpoint.store import CheckpointStore, folder_of
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError


@dataclass(frozen=True, slots=True)
class Damage:
    """One problem. The message has file and offset; `tensor` is the affected tensor, None = all of them."""

    message: str
    tensor: str | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result for one commit; it is sound when `damages` is empty."""

    commit: Commit
    bytes_read: int
    boxes_read: int
    damages: list[Damage]


def verify(store: CheckpointStore, commit: Commit) -> VerifyReport:
    """Read every box of a commit and list all damage.

    Raises:
        UnreachableError: the file system returns an error.
    """
    try:
        manifest = store.manifest(commit)
    except CheckpointCorruptError as error:
        return VerifyReport(commit, 0, 0, [Damage(str(error), None)])
    path = store.storage.path(f"{folder_of(commit)}/manifest.json")
    damages = [
        Damage(f"{path}: boxes overlap and leave a part of the tensor out", name)
        for name, tensor in manifest.tensors.items()
        if not is_tiled(tensor)
    ]
    boxes: dict[int, list[tuple[StoredBox, str]]] = defaultdict(list)
    for name, tensor in manifest.tensors.items():
        for box in tensor.boxes:
            boxes[box.file].append((box, name))
    bytes_read = boxes_read = 0
    for index, file in enumerate(manifest.files):
        try:
            with ShardReader(store.storage, folder_of(commit), file, commit) as reader:
                for box, name in sorted(boxes[index], key=lambda entry: entry[0].byte_offset):
                    try:
                        reader.read(box)
                    except CheckpointCorruptError as error:
                        damages.append(Damage(str(error), name))
                    bytes_read += box.bytes
                    boxes_read += 1
        except CheckpointCorruptError as error:
            damages.append(Damage(str(error), None))
    return VerifyReport(commit, bytes_read, boxes_read, damages)
