"""Where a job is in its data, as its checkpoints store it.

Which tokens sample i has follows from the seed, the sequence length and the datasets, each with its weight
and the sample it began with. All of that is stored with the next sample, so that a resume with another batch
size or other weights goes on without a gap or a repetition, and one that cannot is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from megascale.data.blend import Shares
from megascale.data.indexed import token_count
from megascale.errors import DataError, SettingsError
from megascale.job.data import Data

_KEPT: Final = 128
"""Datasets that a position holds at most; the manifest has up to 64, the others were in use before."""
_LONGEST_NAME: Final = 256
_FIELD: Final = "spec.runtime.megatron"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset of a job.

    Attributes:
        name: its path, or a digest of a long path.
        tokens: how many it holds.
        weight: its share of the samples; 0 = it is not in use any more.
        first: the sample of its own order that it gives first.
    """

    name: str
    tokens: int
    weight: float
    first: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """What a job has read of its data, and what comes next.

    Attributes:
        seed, sequence_length: what samples are cut and shuffled by.
        datasets: those in use in the order of the manifest, then those that were in use before.
        begin: the sample of the job from which this division between the datasets holds.
        next_sample: the next sample of the job.
        tokens: tokens that the job has used so far.
    """

    seed: int
    sequence_length: int
    datasets: tuple[Dataset, ...]
    begin: int = 0
    next_sample: int = 0
    tokens: int = 0

    @classmethod
    def start(cls, data: Data, seed: int) -> Self:
        """The position of a job that has not begun.

        Raises:
            DataError: a dataset is missing.
        """
        datasets = tuple(Dataset(_name(path), token_count(Path(path)), w) for path, w in data.datasets)
        return cls(seed, data.sequence_length, datasets)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`."""
        datasets = tuple(Dataset(**entry) for entry in stored["datasets"])
        names = ("begin", "tokens")
        rest = {name: int(stored[name]) for name in names}
        return cls(
            int(stored["seed"]),
            int(stored["sequenceLength"]),
            datasets,
            next_sample=int(stored["nextSample"]),
            **rest,
        )

    def as_json(self) -> dict[str, Any]:
        """The position as JSON values."""
        return {
            "seed": self.seed,
            "sequenceLength": self.sequence_length,
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "begin": self.begin,
            "nextSample": self.next_sample,
            "tokens": self.tokens,
        }

    def at(self, next_sample: int) -> Self:
        """This position when the samples before `next_sample` have been used."""
        used = (next_sample - self.next_sample) * self.sequence_length
        return replace(self, next_sample=next_sample, tokens=self.tokens + used)

    @property
    def in_use(self) -> tuple[Dataset, ...]:
        """The datasets that samples are drawn from."""
        return tuple(dataset for dataset in self.datasets if dataset.weight)

    def reached(self) -> tuple[Dataset, ...]:
        """The datasets, each with the sample that it gives next as its first."""
        if self.next_sample == self.begin:
            return self.datasets
        given = Shares.of([dataset.weight for dataset in self.datasets]).given(self.next_sample - self.begin)
        return tuple(
            replace(dataset, first=dataset.first + count)
            for dataset, count in zip(self.datasets, given, strict=True)
        )


def go_on(stored: Position, wanted: Position, *, restart_order: bool) -> tuple[Position, list[str]]:
    """The position from which a job that stopped at `stored` goes on with the data of `wanted`.

    Args:
        wanted: `Position.start` of the present manifest.
        restart_order: begin the new order at its first sample where the old one cannot be continued.

    Returns:
        The position, and what a person should know about it, one sentence each.

    Raises:
        SettingsError: samples of the new order cannot be told apart from those that were used.
    """
    obstacles = _obstacles(stored, wanted)
    if obstacles and not restart_order:
        raise SettingsError(
            f"{'; '.join(obstacles)}: which samples were used already cannot be told in the new order; change"
            f" it back, or set {_FIELD}.data.restartOrder to true: then the new order begins at its first"
            " sample, and data is used again"
        )
    if obstacles:
        begun = replace(
            wanted, begin=stored.next_sample, next_sample=stored.next_sample, tokens=stored.tokens
        )
        notes = [
            f"{text}: the new order begins at its first sample, data is used again" for text in obstacles
        ]
        return begun, notes
    pairs = _matched(stored.datasets, wanted.datasets)
    if _is_same_division(stored.in_use, pairs):
        notes = [
            f"{before.name} is now {now.name}: both hold {now.tokens:,} tokens and are taken to be the same"
            for now, before in pairs
            if before is not None and before.name != now.name
        ]
        return replace(stored, datasets=_renamed(stored.datasets, wanted.datasets)), notes
    return _divided_anew(stored, wanted)


def _obstacles(stored: Position, wanted: Position) -> list[str]:
    """What differs so that the samples that were used cannot be told in the new order."""
    found = []
    if stored.seed != wanted.seed:
        found.append(f"{_FIELD}.seed is {wanted.seed}, the checkpoint was trained with {stored.seed}")
    if stored.sequence_length != wanted.sequence_length:
        found.append(
            f"{_FIELD}.data.sequenceLength is {wanted.sequence_length},"
            f" the checkpoint was trained with {stored.sequence_length}"
        )
    for now, before in _matched(stored.datasets, wanted.datasets):
        if before is not None and before.tokens != now.tokens:
            found.append(
                f"{now.name} holds {now.tokens:,} tokens, it held {before.tokens:,} when the checkpoint was"
                " trained on it"
            )
    return found


def _divided_anew(stored: Position, wanted: Position) -> tuple[Position, list[str]]:
    """Other weights or datasets: each dataset goes on with the sample it would have given next."""
    reached = stored.reached()
    datasets, notes, known = [], [], set()
    for now, before in _matched(reached, wanted.datasets):
        datasets.append(replace(now, first=before.first if before else 0))
        if before is None:
            notes.append(f"{now.name} is new: it begins with its first sample")
        else:
            known.add(before.name)
    notes += [
        f"{dataset.name} is left after {dataset.first:,} of its samples"
        for dataset in reached
        if dataset.weight and dataset.name not in known
    ]
    left = [replace(dataset, weight=0.0) for dataset in reached if dataset.name not in known]
    new = replace(stored, datasets=(*datasets, *left)[:_KEPT], begin=stored.next_sample)
    shares = ", ".join(f"{dataset.name} {dataset.weight:g}" for dataset in datasets)
    return new, [f"the data is drawn in new shares: {shares}; no sample is used twice", *notes]


def _matched(before: Sequence[Dataset], now: Sequence[Dataset]) -> list[tuple[Dataset, Dataset | None]]:
    """Each dataset of `now` with what it was before: the one of its path, else one moved there.

    A dataset counts as moved if its path is new, one path is gone, and both hold as many tokens.
    """
    by_name = {dataset.name: dataset for dataset in before}
    names = {dataset.name for dataset in now}
    gone = [dataset for dataset in before if dataset.weight and dataset.name not in names]
    found: list[tuple[Dataset, Dataset | None]] = []
    for dataset in now:
        match = by_name.get(dataset.name)
        if match is None:
            match = next((other for other in gone if other.tokens == dataset.tokens), None)
            gone = [other for other in gone if other is not match]
        found.append((dataset, match))
    return found


def _is_same_division(in_use: Sequence[Dataset], pairs: Sequence[tuple[Dataset, Dataset | None]]) -> bool:
    """Whether the datasets and their weights are those in use, in the same order."""
    if len(in_use) != len(pairs):
        return False
    alone = len(pairs) == 1
    return all(
        before is old and (alone or now.weight == old.weight)
        for (now, before), old in zip(pairs, in_use, strict=True)
    )


def _renamed(stored: Sequence[Dataset], wanted: Sequence[Dataset]) -> tuple[Dataset, ...]:
    names = iter(dataset.name for dataset in wanted)
    return tuple(replace(old, name=next(names)) if old.weight else old for old in stored)


def _name(path: str) -> str:
    """What a position calls a dataset: bounded, because a snapshot in memory has little room for it."""
    if len(path) <= _LONGEST_NAME:
        return path
    return f"sha256:{hashlib.sha256(path.encode()).hexdigest()}"


def stored_position(job_state: Mapping[str, Any], wanted: Position) -> tuple[Position, list[str]]:
    """The position in the state that a checkpoint stores.

    Checkpoints of earlier versions have the next sample only; what they were trained on is taken to be what
    the manifest says now.

    Raises:
        DataError: the state is of a later version.
    """
    if "data" not in job_state:
        unknown = "the checkpoint does not say which data it was trained on: it is taken to be the same"
        return wanted.at(int(job_state.get("nextSample", 0))), [unknown]
    try:
        return Position.read(job_state["data"]), []
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the position in the data that the checkpoint stores cannot be read: {error}"
        ) from error
