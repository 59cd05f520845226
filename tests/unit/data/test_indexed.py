"""Megatron's indexed format: our files in megatron-core's reader, its files in ours, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from megascale.data.indexed import IndexedTokens, IndexedWriter, bin_path, idx_path
from megascale.errors import DataError

DOCUMENTS = [[1, 2, 3], [256], [], list(range(100)), [65535, 0]]


def write(prefix: Path, documents: list[list[int]], dtype: str = "<u2") -> Path:
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype(dtype)) as writer:
        for document in documents:
            writer.append(np.asarray(document))
            writer.end_document()
    return prefix


def read(prefix: Path) -> list[list[int]]:
    indexed = IndexedTokens.open(prefix)
    return [indexed.sequence(i).tolist() for i in range(len(indexed.lengths))]


def patch(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS, dtype)
    assert read(prefix) == DOCUMENTS
    indexed = IndexedTokens.open(prefix)
    assert indexed.tokens.tolist() == [token for document in DOCUMENTS for token in document]
    assert indexed.borders.tolist() == [0, 1, 2, 3, 4, 5]


def test_megatron_reads_our_files(tmp_path: Path) -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    prefix = write(tmp_path / "x.y", DOCUMENTS)
    theirs = indexed_dataset.IndexedDataset(str(prefix))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert theirs.index.dtype is np.uint16


def test_we_read_megatrons_files(tmp_path: Path) -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    builder = indexed_dataset.IndexedDatasetBuilder(str(bin_path(tmp_path / "x")), dtype=np.int32)
    builder.add_document(torch.arange(7), [3, 4])
    builder.add_document(torch.arange(100, 105), [5])
    builder.finalize(str(idx_path(tmp_path / "x")))
    assert read(tmp_path / "x") == [[0, 1, 2], [3, 4, 5, 6], [100, 101, 102, 103, 104]]
    assert IndexedTokens.open(tmp_path / "x").borders.tolist() == [0, 2, 3]


def test_long_documents_become_several_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megascale.data.indexed._MAX_SEQUENCE_TOKENS", 10)
    pieces: list[NDArray[np.int64]] = [np.arange(6), np.arange(6), np.arange(6)]
    with IndexedWriter(tmp_path / "x.bin", tmp_path / "x.idx", np.dtype("<u2")) as writer:
        for piece in pieces:
            writer.append(piece)
        writer.end_document()
    indexed = IndexedTokens.open(tmp_path / "x")
    assert indexed.lengths.tolist() == [6, 6, 6]
    assert indexed.borders.tolist() == [0, 3]


@pytest.mark.parametrize("missing", ["bin", "idx"])
def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path, missing: str) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    (tmp_path / f"x.{missing}").unlink()
    with pytest.raises(
        DataError, match=rf"x\.{missing}: no such file.*data prepare PATHS.* --output {prefix}"
    ):
        IndexedTokens.open(prefix)


def test_a_truncated_token_file_is_found(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    size = bin_path(prefix).stat().st_size
    for cut in (1, 2, size):
        bin_path(prefix).write_bytes(bin_path(write(prefix, DOCUMENTS)).read_bytes()[: size - cut])
        with pytest.raises(
            DataError, match=rf"x\.bin: is cut short.*offset {size - cut},.*up to offset {size};"
        ):
            IndexedTokens.open(prefix)


def test_a_longer_token_file_is_found(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    with bin_path(prefix).open("ab") as stream:
        stream.write(b"xx")
    with pytest.raises(DataError, match=r"ends at offset 214, but x\.idx places sequences up to offset 212"):
        IndexedTokens.open(prefix)


def test_every_truncation_of_the_index_is_found(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    content = idx_path(prefix).read_bytes()
    for size in range(len(content)):
        idx_path(prefix).write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"x\.idx: ends at offset {size}"):
            IndexedTokens.open(prefix)


N = len(DOCUMENTS)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"GARBAGE", "offset 0: starts with"),
        (9, b"\x02", "offset 9: version 2, expected 1"),
        (17, b"\x63", "offset 17: token type 99, expected one of 1 .uint8."),
        (18, b"\xff" * 8, "announces 18446744073709551615 sequences"),
        (34 + 4, b"\xff\xff\xff\xff", f"offset {34 + 4}: sequence 1 has length -1"),
        (34 + 4, b"\x02", f"offset {34 + 4 * N + 8 * 2}: sequence 2 starts at byte 8, expected 10"),
        (34 + 4 * N, b"\x02", f"offset {34 + 4 * N}: sequence 0 starts at byte 2, expected 0"),
        (34 + 12 * N, b"\x01", f"offset {34 + 12 * N}: the first document"),
        (34 + 12 * N + 8, b"\x09", f"offset {34 + 12 * N + 16}: document 1 ends before it starts"),
        (
            34 + 12 * N + 8 * N,
            b"\x09",
            f"offset {34 + 12 * N + 8 * N}: documents end at sequence 9, expected 5",
        ),
    ],
)
def test_damage_in_the_index_is_found_with_its_offset(
    tmp_path: Path, offset: int, value: bytes, message: str
) -> None:
    prefix = write(tmp_path / "x", DOCUMENTS)
    patch(idx_path(prefix), offset, value)
    with pytest.raises(DataError, match=rf"x\.idx: .*{message}"):
        IndexedTokens.open(prefix)


def test_empty_files_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    (tmp_path / "x.idx").touch()
    with pytest.raises(DataError, match=r"x\.idx: ends at offset 0, within the header"):
        IndexedTokens.open(tmp_path / "x")
