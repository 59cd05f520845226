"""Checkpoints from any training script, in two lines.

    state = script.load()                                 None on a fresh start
    script.save({"model": ..., "optimizer": ...}, step)   every rank calls it, with the same state

For data-parallel scripts, whose ranks hold the same state: each rank writes its share of the tensors, and a
checkpoint counts only once all of them are written (docs/own-scripts.md). State is any nesting of dicts,
lists and tuples of tensors, numbers, strings and None, such as the `state_dict()` of models, optimizers and
schedulers. Nothing is pickled. Outside of a MegaScale job `save` does nothing and `load` returns None.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from megascale.checkpoint.pieces import Piece
from megascale.checkpoint.restore import restore
from megascale.checkpoint.save import save as save_pieces
from megascale.checkpoint.soundness import ITEM_BYTES
from megascale.checkpoint.store import CheckpointStore
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointSaveError, InputError
from megascale.monitor import reporter
from megascale.observe.alerts import alert
from megascale.observe.rundir import RunDir

_STRUCTURE = "structure"
_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class _Launch:
    """The launch order, which the agent writes beside the rank record."""

    job: str
    attempt: int
    rank: int
    world_size: int
    resume: Commit | None
    lineage: dict[int, Commit | None]
    keep: int
    store: CheckpointStore


def save(state: dict[str, Any], step: int) -> bool:
    """Save `state` as it is after `step`; collective.

    Returns:
        Whether it was saved. A failure raises an alert, and training goes on; so does a failure to remove
        old checkpoints.

    Raises:
        InputError: the state has a value that is neither a tensor nor plain data; the message has its path.
    """
    launch = _launch()
    if launch is None:
        return False
    tensors: dict[str, torch.Tensor] = {}
    structure = _pack(state, "state", tensors)
    shares = enumerate(sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])))
    mine = [_piece(name, tensor) for index, (name, tensor) in shares if _writer(index, launch)]
    try:
        save_pieces(
            launch.store,
            step=step,
            attempt=launch.attempt,
            parent=launch.resume,
            pieces=mine,
            job_state={"step": step, _STRUCTURE: structure},
            rank_state={},
            layout={"data": launch.world_size},
            rank=launch.rank,
            world_size=launch.world_size,
            agree=_agree,
            at_point=lambda _point: None,
            job=launch.job,
        )
    except CheckpointSaveError as error:
        if launch.rank == 0:
            alert("checkpointSaveFailed", f"step {step}: {error}")
        return False
    if (record := reporter()) is not None:
        record.file.update(saved_step=step, saved_attempt=launch.attempt)
    if launch.rank == 0:
        pruned = launch.store.prune(launch.keep, launch.lineage, launch.attempt)
        if pruned.problems:
            alert("checkpointPruneFailed", pruned.summary())
    return True


def load() -> dict[str, Any] | None:
    """The state to resume from, with tensors on the CPU; None if there is none yet.

    Raises:
        CheckpointCorruptError: the checkpoint does not match its checksums.
        InputError: its state names a tensor that it does not hold.
    """
    launch = _launch()
    if launch is None or launch.resume is None:
        return None
    stored = launch.store.manifest(launch.resume).tensors
    tensors = {
        name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)) for name, entry in stored.items()
    }
    restored = restore(launch.store, launch.resume, [_piece(*item) for item in tensors.items()])
    state = _unpack(restored.job_state[_STRUCTURE], tensors)
    assert isinstance(state, dict)
    return state


def _writer(index: int, launch: _Launch) -> bool:
    """Whether this rank writes the tensor that is `index`-th by size."""
    return index % launch.world_size == launch.rank


def _piece(name: str, tensor: torch.Tensor) -> Piece:
    shape = tuple(tensor.shape)
    return Piece(name, shape, (0,) * len(shape), shape, tensor.view(-1))


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401 - any state
    """`value` as JSON; its tensors are put into `tensors` under their paths, which differ from each other.

    Checkpoints of versions that joined paths by dots load too, because the structure names its tensors.
    """
    if isinstance(value, torch.Tensor):
        if value.numel():
            tensors[path] = value.detach().cpu().contiguous().view(value.shape or (1,))
        return {"tensor": path, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int):
                raise InputError(f"{path}: key {key!r} is a {type(key).__name__}, expected text or int")
        return {"dict": [[key, _pack(item, f"{path}/{_part(key)}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise InputError(f"{path}: cannot save a {type(value).__name__}; give tensors and plain data")


def _part(key: str | int) -> str:
    """A key as one part of a path, escaped as in a JSON pointer; text that is a number is quoted."""
    if isinstance(key, int):
        return str(int(key))
    escaped = key.replace("~", "~0").replace("/", "~1")
    return f"~'{escaped}'" if _NUMBER.fullmatch(key) else escaped


def _unpack(packed: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401 - any state
    ((kind, content),) = ((name, packed[name]) for name in packed if name not in ("shape", "dtype"))
    if kind == "tensor":
        found = tensors.get(content)
        shape = tuple(packed["shape"])
        if found is None:
            return _empty(content, shape, packed["dtype"])
        return found.view(shape)
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return float(content) if kind == "float" else content


def _empty(path: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A tensor without elements, which no box of a checkpoint holds."""
    if math.prod(shape) or dtype not in ITEM_BYTES:
        raise InputError(f"{path}: the checkpoint has no values for a {dtype} tensor of shape {list(shape)}")
    empty: torch.Tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    return empty


def _agree(ok: bool) -> bool:
    """Whether `ok` is True on all ranks; collective."""
    if not distributed.is_initialized():
        return ok
    device = "cuda" if "nccl" in distributed.get_backend() else "cpu"
    vote = torch.tensor([int(ok)], device=device)
    distributed.all_reduce(vote, op=distributed.ReduceOp.MIN)
    return bool(vote.item())


def _launch() -> _Launch | None:
    """Read this rank's launch order; None outside of a job."""
    rank_file = os.environ.get("MEGASCALE_RANK_FILE")
    if not rank_file:
        return None
    order = json.loads(Path(rank_file).with_suffix(".json").read_bytes())
    checkpoint = order["spec"]["spec"]["checkpoint"]
    return _Launch(
        job=order["job"],
        attempt=order["attempt"],
        rank=order["rank"],
        world_size=order["world_size"],
        resume=_commit(order["resume"]),
        lineage={int(attempt): _commit(commit) for attempt, commit in order["lineage"].items()},
        keep=checkpoint["keep"],
        store=CheckpointStore(RunDir(Path(order["run_dir"])).checkpoints(checkpoint["uri"])),
    )


def _commit(data: list[int] | None) -> Commit | None:
    return Commit(*data) if data else None
