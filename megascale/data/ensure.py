"""Makes the data of a job, and checks that it can be read, before anything else is started."""

from __future__ import annotations

from pathlib import Path

from megascale.data.ids import check_ids
from megascale.data.indexed import bin_path, idx_path
from megascale.data.parts import Recipe
from megascale.data.position import Position
from megascale.data.prepare import Notify, OnProgress, Prepared, describe, prepare
from megascale.data.reading import open_samples
from megascale.errors import DataError
from megascale.job.data import Data


def ensure_prepared(
    data: Data,
    vocab_size: int,
    *,
    on_progress: OnProgress = lambda _done, _total: None,
    notify: Notify = lambda _line: None,
    most_bytes: int | None = None,
) -> Prepared | None:
    """Make the data of a job if it is missing and `prepareFrom` has its sources; check that it can be read.

    Args:
        vocab_size: number of token ids of the model.
        most_bytes: a larger token file that was never checked is not read for its ids now; ranks check what
            they read in any case. None = there is no limit.

    Returns:
        The dataset that was made, or None if it existed.

    Raises:
        DataError: the data is missing and `prepareFrom` is empty, or it was made from other sources, is
            damaged or too small, or has token ids beyond the model's vocabulary.
    """
    made = None
    if data.prepare_from and data.path is not None:
        prefix = Path(data.path)
        recipe = Recipe(data.tokenizer, data.text_key, data.skip_bad_documents)
        if not (idx_path(prefix).exists() and bin_path(prefix).exists()):
            made = prepare(data.prepare_from, prefix, recipe=recipe, on_progress=on_progress, notify=notify)
        else:
            _check_sources(prefix, data.prepare_from, recipe)
    check_data(data, vocab_size, on_progress=on_progress, most_bytes=most_bytes)
    return made


def check_data(
    data: Data,
    vocab_size: int,
    *,
    on_progress: OnProgress = lambda _done, _total: None,
    most_bytes: int | None = None,
) -> None:
    """Check that a job can read its data, without making any; arguments as in `ensure_prepared`.

    Raises:
        DataError: the data is missing, damaged or too small, or has token ids beyond the model's vocabulary.
    """
    open_samples(data, Position.start(data, seed=0))
    for path, _ in data.datasets:
        check_ids(Path(path), vocab_size, on_progress, most_bytes=most_bytes)


def _check_sources(prefix: Path, wanted: list[str], recipe: Recipe) -> None:
    description = describe(prefix)
    if description is None:
        return
    advice = f"give another data.path, or remove {idx_path(prefix)} to have it made again"
    if description.sources != wanted:
        raise DataError(
            f"{prefix}: was prepared from {' '.join(description.sources)}, but the manifest says prepareFrom"
            f" {' '.join(wanted)}; {advice}"
        )
    if description.tokenizer != recipe.tokenizer:
        raise DataError(
            f"{prefix}: was prepared with tokenizer {description.tokenizer}, but the manifest says"
            f" {recipe.tokenizer}; {advice}"
        )
