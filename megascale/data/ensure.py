"""Data is there, and is enough, before anything is started."""

from __future__ import annotations

from pathlib import Path

from megascale.data.indexed import bin_path, idx_path
from megascale.data.prepare import Notify, OnProgress, Prepared, describe, prepare
from megascale.data.samples import SampleStream
from megascale.errors import DataError
from megascale.job.megatron import Data


def ensure_prepared(
    data: Data,
    *,
    on_progress: OnProgress = lambda _done, _total: None,
    notify: Notify = lambda _line: None,
) -> Prepared | None:
    """Make the data of a job if it is missing and the manifest says from what; check that it can be read.

    Returns:
        What was made, or None when the data was there.

    Raises:
        DataError: missing and `prepareFrom` is empty, made from something else, damaged, or too small.
    """
    prefix = Path(data.path)
    made = None
    if data.prepare_from:
        if not (idx_path(prefix).exists() and bin_path(prefix).exists()):
            made = prepare(data.prepare_from, prefix, on_progress=on_progress, notify=notify)
        else:
            _check_sources(prefix, data.prepare_from)
    SampleStream.open(prefix, data.sequence_length, seed=0)
    return made


def _check_sources(prefix: Path, wanted: list[str]) -> None:
    description = describe(prefix)
    if description is not None and description.sources != wanted:
        raise DataError(
            f"{prefix}: was prepared from {' '.join(description.sources)}, but the manifest says prepareFrom"
            f" {' '.join(wanted)}; give another data.path, or remove {idx_path(prefix)} to have it made again"
        )
