"""Shard files: the raw boxes of one rank, one after the other; their checksums are in the manifest."""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from math import prod
from types import TracebackType
from typing import BinaryIO, Self

from megascale.checkpoint.boxes import split
from megascale.checkpoint.manifest import ShardFile, StoredBox, StoredTensor
from megascale.checkpoint.pieces import Piece
from megascale.checkpoint.storage import LocalStorage
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError, UnreachableError

_BOX_BYTES = 16 << 20
"""Larger pieces are split into several boxes, so that reading a small part does not check a whole tensor."""


class ShardWriter:
    """Writes one new shard file; `finish` makes its contents durable."""

    def __init__(self, storage: LocalStorage, name: str, rank: int) -> None:
        self._handle = storage.create(name)
        self._rank = rank
        self._at = 0
        self._tensors: dict[str, tuple[str, tuple[int, ...], list[StoredBox]]] = {}

    def write(self, piece: Piece) -> None:
        """Append the values of a piece.

        Raises:
            OSError: no space, no access, a broken disk.
            ValueError: another piece of the same tensor has another dtype or global shape.
        """
        dtype, shape, boxes = self._tensors.setdefault(piece.name, (piece.dtype_name, piece.global_shape, []))
        if (dtype, shape) != (piece.dtype_name, piece.global_shape):
            raise ValueError(f"{piece.name}: pieces of {shape} {dtype} and {piece.global_shape}")
        data = _bytes_of(piece)
        item = piece.tensor.element_size()
        for offset, extent in split(piece.box, _BOX_BYTES // item):
            size = prod(extent) * item
            part, data = data[:size], data[size:]
            crc = zlib.crc32(part)
            self._handle.write(part)
            boxes.append(
                StoredBox(
                    offset=offset, shape=extent, file=self._rank, byte_offset=self._at, bytes=size, crc32=crc
                )
            )
            self._at += size

    def finish(self) -> dict[str, StoredTensor]:
        """Flush and fsync; the tensors written, by name."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return {
            name: StoredTensor(dtype=dtype, shape=shape, boxes=tuple(boxes))
            for name, (dtype, shape, boxes) in self._tensors.items()
        }

    @property
    def bytes(self) -> int:
        return self._at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._handle.close()
            return
        with contextlib.suppress(OSError):  # on a full disk the buffered rest cannot be written either
            self._handle.close()


def _bytes_of(piece: Piece) -> memoryview:
    import torch

    host = piece.tensor.detach().cpu()
    return host.view(torch.uint8).numpy().data


class ShardReader:
    """Reads boxes of one shard file and checks each before it returns it.

    It reads into a buffer instead of mapping the file: an unreadable sector is then an error, not a SIGBUS,
    and the values that were checked are those that are used.
    """

    def __init__(self, storage: LocalStorage, folder: str, file: ShardFile, commit: Commit) -> None:
        """Open a shard of `commit`, whose files are in `folder`.

        Raises:
            CheckpointCorruptError: it is missing, or its size is not the committed one.
            UnreachableError: the file system returns an error.
        """
        name = f"{folder}/{file.name}"
        self._path = storage.path(name)
        self._commit = commit
        self._buffer = bytearray()
        self._handle = self._open(storage, name)
        size = os.fstat(self._handle.fileno()).st_size
        if size != file.bytes:
            self._handle.close()
            raise self._corrupt(f"{self._path}: ends at byte {size}, {file.bytes} bytes were committed")

    def _open(self, storage: LocalStorage, name: str) -> BinaryIO:
        try:
            return storage.open(name)
        except FileNotFoundError as error:
            raise self._corrupt(f"{self._path}: the file is missing") from error
        except OSError as error:
            raise UnreachableError(f"cannot read {self._path}: {error.strerror}") from error

    def read(self, box: StoredBox) -> memoryview:
        """The bytes of a box, checked; valid until the next call.

        Raises:
            CheckpointCorruptError: the bytes are not those that were written; names file and offset.
            UnreachableError: the file system returns an error.
        """
        if len(self._buffer) < box.bytes:
            self._buffer = bytearray(box.bytes)
        view = memoryview(self._buffer)[: box.bytes]
        where = f"{self._path}: bytes {box.byte_offset} to {box.byte_offset + box.bytes}"
        try:
            self._handle.seek(box.byte_offset)
            count = self._handle.readinto(view)  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._corrupt(f"{where}: {error.strerror}") from error
            raise UnreachableError(f"cannot read {where}: {error.strerror}") from error
        if count != box.bytes:
            raise self._corrupt(f"{where}: the file ends after {count} of them")
        crc = zlib.crc32(view)
        if crc != box.crc32:
            raise self._corrupt(f"{where}: CRC-32 is {crc:08x}, {box.crc32:08x} was committed")
        return view

    def _corrupt(self, message: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(message, step=self._commit.step, attempt=self._commit.attempt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
