"""Checks what a manifest says of its own files and tensors, before anything is read where it says."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Final

from megascale.checkpoint.manifest import Manifest, StoredBox, StoredTensor

ITEM_BYTES: Final = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
"""Bytes of one element, by the name of its type."""
_MAX_DIMENSIONS: Final = 8


def problems_of(manifest: Manifest) -> Iterator[str]:
    """One sentence for every tensor of an unknown type or with boxes outside of their files or of itself."""
    for name, tensor in manifest.tensors.items():
        if problem := _tensor_problem(manifest, tensor):
            yield f"tensor {name!r:.200}: {problem}"


def _tensor_problem(manifest: Manifest, tensor: StoredTensor) -> str:
    if tensor.dtype not in ITEM_BYTES:
        return f"dtype {tensor.dtype!r:.40}, expected one of {', '.join(sorted(ITEM_BYTES))}"
    if len(tensor.shape) > _MAX_DIMENSIONS:
        return f"{len(tensor.shape)} dimensions, expected at most {_MAX_DIMENSIONS}"
    for index, box in enumerate(tensor.boxes):
        if problem := _box_problem(manifest, tensor, box):
            return f"box {index}: {problem}"
    stored = sum(prod(box.shape) for box in tensor.boxes)
    if stored != prod(tensor.shape):
        return f"boxes of {stored} elements, expected {prod(tensor.shape)} for shape {list(tensor.shape)}"
    return ""


def _box_problem(manifest: Manifest, tensor: StoredTensor, box: StoredBox) -> str:
    whole = tensor.shape
    if not len(box.offset) == len(box.shape) == len(whole):
        return f"offset and shape have {len(box.offset)} and {len(box.shape)} entries, expected {len(whole)}"
    for axis, (at, size, total) in enumerate(zip(box.offset, box.shape, whole, strict=True)):
        if not 1 <= size <= total - at:
            return f"elements {at} to {at + size} of axis {axis}, expected some of 0 to {total}"
    if box.file >= len(manifest.files):
        return f"file {box.file}, expected one of the {len(manifest.files)} files"
    expected = prod(box.shape) * ITEM_BYTES[tensor.dtype]
    if box.bytes != expected:
        return f"{box.bytes} bytes, expected {expected} for {prod(box.shape)} elements of {tensor.dtype}"
    file = manifest.files[box.file]
    if box.byte_offset + box.bytes > file.bytes:
        return (
            f"bytes {box.byte_offset} to {box.byte_offset + box.bytes} of {file.name},"
            f" which has {file.bytes} bytes"
        )
    return ""


def is_tiled(tensor: StoredTensor) -> bool:
    """Whether the boxes of a tensor cover each of its elements exactly once.

    It adds the signs of corners: those of boxes that meet cancel each other, and what remains are the corners
    of the tensor if and only if the boxes tile it. The boxes have passed `problems_of`.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    for offset, shape in ((box.offset, box.shape) for box in tensor.boxes):
        _add_corners(corners, offset, shape, 1)
    if prod(tensor.shape):
        _add_corners(corners, (0,) * len(tensor.shape), tensor.shape, -1)
    return not any(corners.values())


def _add_corners(
    corners: Counter[tuple[int, ...]], offset: tuple[int, ...], shape: tuple[int, ...], times: int
) -> None:
    ends = [((at, 1), (at + size, -1)) for at, size in zip(offset, shape, strict=True)]
    for corner in itertools.product(*ends):
        corners[tuple(at for at, _ in corner)] += times * prod(sign for _, sign in corner)
