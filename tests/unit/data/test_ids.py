"""Token ids beyond the model's vocabulary are found before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from megascale.data import ids
from megascale.data.ensure import ensure_prepared
from megascale.data.ids import check_ids
from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.prepare import prepare
from megascale.errors import DataError
from megascale.job.data import Data


def write(prefix: Path, tokens: list[int], dtype: str = "<i4") -> Path:
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype(dtype)) as writer:
        writer.append(np.asarray(tokens, dtype=dtype))
        writer.end_document()
    return prefix


def test_the_first_bad_id_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_AT_ONCE", 4)
    prefix = write(tmp_path / "x", [*range(10), 257, 300, 5])
    check_ids(prefix, 301)
    message = (
        r"x\.bin: token 10 \(byte 40\) has id 257, but .*vocabSize is 257: ids must be 0 to 256; .*0 to 300"
    )
    with pytest.raises(DataError, match=message):
        check_ids(prefix, 257)
    with pytest.raises(DataError, match="set vocabSize to 301 or more"):
        check_ids(prefix, 258)
    with pytest.raises(DataError, match=r"token 2 .* has id -1, .*must not be negative"):
        check_ids(write(tmp_path / "y", [1, 2, -1]), 257)


def test_ids_inside_the_padding_are_refused(tmp_path: Path) -> None:
    """257 ids take 320 rows of the embedding; 300 would train one that pads it."""
    data = Data.model_validate(
        {
            "path": str(write(tmp_path / "x", [300] * 9)),
            "sequenceLength": 4,
            "microBatch": 1,
            "globalBatch": 1,
        }
    )
    with pytest.raises(DataError, match=r"token 0 .* has id 300"):
        ensure_prepared(data, 257)
    assert ensure_prepared(data, 301) is None


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [1, 2, 3])
    read: list[int] = []

    def check() -> None:
        check_ids(prefix, 10, lambda done, _total: read.append(done))

    check()
    check()
    assert read == [12]
    os.utime(bin_path(prefix), ns=(1, 1))
    check()
    assert read == [12, 12]
    (tmp_path / ".x.ids.json").write_text("{")
    check()
    assert read == [12, 12, 12]


def test_a_large_file_may_be_left_to_the_ranks(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [999, 1, 2])
    check_ids(prefix, 10, most_bytes=11)
    with pytest.raises(DataError):
        check_ids(prefix, 10, most_bytes=12)


def test_our_own_data_is_not_read_for_its_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    prepare([str(tmp_path / "a.txt")], tmp_path / "x")
    check_ids(tmp_path / "x", 257, lambda *_: pytest.fail("read"))
    with pytest.raises(DataError, match=r"token ids up to 256, but model.vocabSize is 200; use 257"):
        check_ids(tmp_path / "x", 200)
    write(tmp_path / "x", [500, 1], "<u2")
    with pytest.raises(DataError, match=r"token 0 .* has id 500"):
        check_ids(tmp_path / "x", 257)
