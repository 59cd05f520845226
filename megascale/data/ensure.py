"""Makes the data of a job, and checks that it can be read, before anything else is started."""

from __future__ import annotations

from pathlib import Path

from megascale.data.indexed import bin_path, idx_path
from megascale.data.parts import Recipe
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
) -> Prepared | None:
    """Make the data of a job if it is missing and `prepareFrom` has its sources; check that it can be read.

    Args:
        vocab_size: number of token ids of the model.

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
    for path, _ in data.datasets:
        _check_vocabulary(Path(path), vocab_size)
    open_samples(data, seed=0)
    return made


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


def _check_vocabulary(prefix: Path, vocab_size: int) -> None:
    description = describe(prefix)
    if description is not None and description.vocab_size > vocab_size:
        raise DataError(
            f"{prefix}: has token ids up to {description.vocab_size - 1}, but model.vocabSize is"
            f" {vocab_size}; use {description.vocab_size} or more"
        )
