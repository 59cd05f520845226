"""Several ranks as threads of one process, over a toy model of three tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from megascale.checkpoint import CheckpointStore, Piece, SaveReport, flat_range_boxes, save
from megascale.core.contract.lineage import Commit

SHAPES = {"embedding.weight/master": (7, 6), "layers.0.norm.weight/master": (6,), "scale/master": ()}


def values_of(name: str, salt: int = 0) -> torch.Tensor:
    """The whole tensor `name`, another one for each salt."""
    generator = torch.Generator().manual_seed(sum(name.encode()) + salt)
    return torch.rand(SHAPES[name], generator=generator)


def flat_pieces(rank: int, ranks: int, salt: int | None = 0) -> list[Piece]:
    """The rank's pieces when each tensor is cut into flat ranges; salt None = NaN, to be restored into."""
    held = []
    for name, shape in SHAPES.items():
        whole = values_of(name, salt or 0).reshape(-1)
        start, end = (len(whole) * r // ranks for r in (rank, rank + 1))
        flat = whole[start:end].clone() if salt is not None else torch.full((end - start,), torch.nan)
        at = 0
        for offset, extent in flat_range_boxes(shape, start, end):
            count = int(torch.tensor(extent).prod()) if extent else 1
            held.append(Piece(name, shape, offset, extent, flat[at : at + count]))
            at += count
    return held


@dataclass
class World:
    """Ranks that agree like ranks of a process group."""

    ranks: int
    votes: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.votes = [True] * self.ranks
        self.barrier = threading.Barrier(self.ranks, timeout=20)

    def agree_as(self, rank: int) -> Callable[[bool], bool]:
        def agree(ok: bool) -> bool:
            self.votes[rank] = ok
            self.barrier.wait()
            result = all(self.votes)
            self.barrier.wait()
            return result

        return agree


def save_all(
    store: CheckpointStore,
    step: int,
    pieces: Sequence[Sequence[Piece]],
    *,
    attempt: int = 1,
    parent: Commit | None = None,
    at_point: Callable[[int, str], None] = lambda _rank, _point: None,
) -> list[SaveReport | Exception]:
    """Save on one thread per rank; each rank's report, or what it raised."""
    world = World(len(pieces))

    def run(rank: int) -> SaveReport | Exception:
        arguments: dict[str, Any] = {"rank": rank, "world_size": len(pieces), "agree": world.agree_as(rank)}
        try:
            return save(
                store,
                step=step,
                attempt=attempt,
                parent=parent,
                pieces=pieces[rank],
                job_state={"step": step, "cursor": 0.1},
                rank_state={"rank": rank},
                layout={"data": len(pieces)},
                at_point=lambda point: at_point(rank, point),
                **arguments,
            )
        except Exception as error:  # noqa: BLE001 - handed to the test
            return error

    with ThreadPoolExecutor(len(pieces)) as pool:
        return list(pool.map(run, range(len(pieces))))


@dataclass(frozen=True)
class Ranks:
    """What tests use of this file."""

    shapes: dict[str, tuple[int, ...]]
    values: Callable[..., torch.Tensor]
    pieces: Callable[..., list[Piece]]
    save_all: Callable[..., list[SaveReport | Exception]]

    def save_flat(self, store: CheckpointStore, step: int, ranks: int = 2, **options: Any) -> Commit:
        """Save the toy model with salt = step; fails the test when a rank does."""
        results = self.save_all(store, step, [self.pieces(r, ranks, step) for r in range(ranks)], **options)
        assert all(isinstance(result, SaveReport) for result in results), results
        return Commit(step, options.get("attempt", 1))


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    return Ranks(SHAPES, values_of, flat_pieces, save_all)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")
