"""The engine's state saved under one parallel layout and restored under others.

Run as a script this file is the process that ranks are forked from: it imports the engine once and answers
one request per line of stdin.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._C._distributed_c10d import TCPStore

from megascale.checkpoint import CheckpointStore, verify
from megascale.core.contract.lineage import Commit

GPT = {"num_layers": 4, "hidden_size": 24, "attention_heads": 4, "kv_heads": 2, "ffn_hidden_size": 40}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {**GPT, "window": 8},
    "gated": {**GPT, "activation": "swiglu", "norm": "rmsnorm", "block": "serial", "tied_embeddings": False},
}
SEQUENCE, MICRO_BATCHES = 16, 4
LOSS_TOLERANCE = 1e-5
"""Tensor parallelism splits the sums inside a layer."""


# --- the forked side ---------------------------------------------------------------------------------


def run_rank(request: dict[str, Any], rank: int) -> None:
    """Build the engine, restore, train, save and dump as the request says."""
    import torch

    from megascale.checkpoint import restore
    from megascale.engine.device import open_device
    from megascale.engine.groups import Layout, build_groups, connect
    from megascale.engine.sharded_state import pieces
    from megascale.engine.state import build_engine
    from megascale.job.megatron import Optimizer
    from megascale.model.shape import ModelShape

    layout = Layout(**request["layout"])
    with open_device(0) as device:
        connect(
            "127.0.0.1",
            request["port"],
            "layouts/",
            rank=rank,
            world_size=layout.world_size,
            backend=device.backend,
        )
        state = build_engine(
            ModelShape(**SHAPES[request["shape"]]),
            Optimizer(name=request["optimizer"]),
            build_groups(layout),
            sequence_length=SEQUENCE,
            device=device.torch_device,
            dtype=torch.bfloat16 if request["bf16"] else torch.float32,
            seed=request["seed"],
        )
        store = CheckpointStore(request["store"])
        if request["restore"]:
            restored = restore(store, Commit(*request["restore"]), pieces(state))
            state.inner.updates = int(restored.job_state["updates"])
            state.publish_masters()
        for step in range(request["train"]):
            train(state, step, lr=0.01)
        if request["save"]:
            save_state(state, store, request, rank)
        dump(state, Path(request["dump"]), rank)
        loss = train(state, 99, lr=0.0)
        (Path(request["dump"]) / f"loss-{rank}").write_text(repr(loss))
        torch.distributed.destroy_process_group()


def train(state: Any, step: int, lr: float) -> float:
    """One step on data that depends on the step only; the loss before the update."""
    import torch

    from megascale.engine.stepper import Stepper

    tokens = np.random.default_rng(step).integers(0, 257, (MICRO_BATCHES, 1, SEQUENCE + 1))
    rank, size = state.groups.coordinates.data, state.groups.layout.data
    own = torch.from_numpy(tokens[rank::size])
    stepper = Stepper(
        state,
        micro_batch=1,
        sequence_length=SEQUENCE,
        clip_grad=1.0,
        on_forward=lambda _index: None,
        on_backward=lambda _index: None,
    )
    stepper.forward_backward([(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in own])
    return stepper.update(lr, []).loss


def save_state(state: Any, store: CheckpointStore, request: dict[str, Any], rank: int) -> None:
    import torch

    from megascale.checkpoint import save
    from megascale.engine.sharded_state import owned_pieces

    def agree(ok: bool) -> bool:
        vote = torch.tensor([int(ok)])
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN)
        return bool(vote.item())

    def at_point(point: str) -> None:
        if request["kill"] == [rank, point]:
            os.kill(os.getpid(), signal.SIGKILL)

    save(
        store,
        step=request["save"],
        attempt=1,
        parent=None,
        pieces=owned_pieces(state),
        job_state={"updates": state.inner.updates},
        rank_state={},
        layout=request["layout"],
        rank=rank,
        world_size=state.groups.layout.world_size,
        agree=agree,
        at_point=at_point,
    )


def dump(state: Any, folder: Path, rank: int) -> None:
    """Everything this rank holds, boxes and values, for the test to put together on its own."""
    from megascale.engine.sharded_state import pieces

    arrays, index = [], []
    for piece in pieces(state):
        index.append((piece.name, piece.global_shape, piece.offset, piece.shape))
        arrays.append(piece.tensor.numpy())
    for box in state.boxes:
        index.append((f"{box.name}/live", box.global_shape, box.offset, box.shape))
        arrays.append(box.parameter.detach().float().reshape(-1).numpy())
    np.savez(folder / f"rank-{rank}.npz", *arrays)
    (folder / f"rank-{rank}.json").write_text(json.dumps(index))


def serve() -> None:
    import megascale.engine

    megascale.engine.preload()
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        sizes = request["layout"]
        for rank in range(sizes["tensor"] * sizes["pipeline"] * sizes["data"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    run_rank(request, rank)
                except Exception:  # noqa: BLE001 - a forked child must not return into the loop
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


# --- the tests ---------------------------------------------------------------------------------------


class Ranks:
    """The serving process, and what its ranks dumped."""

    def __init__(self, folder: Path) -> None:
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._folder = folder
        self._log = (folder / "log").open("w+")
        self._requests = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | pinned,
        )

    def ask(self, **request: Any) -> tuple[list[int], Path]:
        """Exit statuses by rank, and the folder of the dumps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests += 1
        folder = self._folder / f"dump-{self._requests}"
        folder.mkdir()
        server = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        defaults = {
            "shape": "tied", "optimizer": "lamb", "bf16": False, "seed": None, "restore": None, "train": 0,
            "save": None, "kill": None,
        }  # fmt: skip
        asked = defaults | {"dump": str(folder), "port": server.port} | request
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline()), folder

    def run(self, tensor: int, pipeline: int, data: int, interleave: int = 1, **request: Any) -> Path:
        """Ask, and expect every rank to succeed."""
        layout = {"tensor": tensor, "pipeline": pipeline, "data": data, "interleave": interleave}
        statuses, folder = self.ask(layout=layout, **request)
        self._log.flush()
        assert set(statuses) == {0}, (self._folder / "log").read_text()
        return folder

    def close(self) -> None:
        self._process.communicate(timeout=30)
        self._log.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    served = Ranks(tmp_path_factory.mktemp("ranks"))
    yield served
    served.close()


def by_rank(folder: Path) -> list[dict[str, np.ndarray]]:
    """Rank -> "name offset" -> values."""
    held = []
    for path in sorted(folder.glob("rank-*.json")):
        with np.load(path.with_suffix(".npz")) as arrays:
            index = json.loads(path.read_text())
            held.append({f"{e[0]} {e[2]}": arrays[f"arr_{i}"] for i, e in enumerate(index)})
    return held


def whole_model(folder: Path) -> dict[str, np.ndarray]:
    """Global tensors put together from all ranks; replicas must agree and nothing may be missing."""
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("rank-*.json")):
        with np.load(path.with_suffix(".npz")) as arrays:
            for i, (name, global_shape, offset, shape) in enumerate(json.loads(path.read_text())):
                whole = tensors.setdefault(name, np.full(global_shape, np.nan, dtype=np.float32))
                box = whole[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))]
                values = arrays[f"arr_{i}"].reshape(shape)
                assert (np.isnan(box) | (box == values)).all(), f"{name}: ranks disagree"
                box[...] = values
    for name, whole in tensors.items():
        assert not np.isnan(whole).any(), f"{name}: not all of it is held"
    return tensors


def loss_of(folder: Path) -> float:
    (loss,) = {float(path.read_text()) for path in folder.glob("loss-*")}
    return loss


def assert_same_model(folder: Path, reference: Path) -> None:
    found, expected = whole_model(folder), whole_model(reference)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    assert loss_of(folder) == pytest.approx(loss_of(reference), abs=LOSS_TOLERANCE)


def test_the_same_layout_continues_bit_for_bit(ranks: Ranks, tmp_path: Path) -> None:
    trained = ranks.run(1, 1, 2, seed=1, train=3, save=3, store=str(tmp_path))
    moments = [values for name, values in by_rank(trained)[0].items() if "exp_avg" in name]
    assert any(values.any() for values in moments)
    resumed = ranks.run(1, 1, 2, restore=[3, 1], store=str(tmp_path))
    for before, after in zip(by_rank(trained), by_rank(resumed), strict=True):
        assert before.keys() == after.keys()
        for name, values in before.items():
            assert values.tobytes() == after[name].tobytes(), name
    assert loss_of(resumed) == loss_of(trained)
    assert not verify(CheckpointStore(tmp_path), Commit(3, 1)).damages


@pytest.mark.parametrize("shape", ["tied", "gated"])
def test_any_layout_reads_any_other(ranks: Ranks, tmp_path: Path, shape: str) -> None:
    """Data parallel to every layout, and from the most split layout back."""
    common = {"shape": shape, "store": str(tmp_path)}
    trained = ranks.run(1, 1, 2, seed=1, train=2, save=2, **common)
    for layout in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 2, 1, 2), (1, 1, 4)):
        assert_same_model(ranks.run(*layout, restore=[2, 1], **common), trained)
    split = ranks.run(2, 2, 1, restore=[2, 1], train=2, save=4, **common)
    assert not np.array_equal(
        whole_model(split)["layers.3.mlp.fc1.weight/master"],
        whole_model(trained)["layers.3.mlp.fc1.weight/master"],
    )
    for layout in ((1, 1, 1), (1, 1, 2), (2, 1, 2)):
        assert_same_model(ranks.run(*layout, restore=[4, 1], **common), split)


def test_names_are_those_of_the_whole_model(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, 2, 1, seed=1, train=1, save=1, store=str(tmp_path))
    tensors = CheckpointStore(tmp_path).manifest(Commit(1, 1)).tensors
    parameters = {name.rpartition("/")[0] for name in tensors}
    assert parameters == {"embedding.weight", "final_norm.weight", "final_norm.bias"} | {
        f"layers.{layer}.{name}"
        for layer in range(4)
        for name in ("norm.weight", "norm.bias", "attention.qkv.weight", "attention.proj.weight",
                     "mlp.fc1.weight", "mlp.fc2.weight")
    }  # fmt: skip
    assert tensors["layers.3.attention.qkv.weight/exp_avg_sq"].shape == (48, 24)


def test_bf16_parameters_follow_from_fp32_masters(ranks: Ranks, tmp_path: Path) -> None:
    common = {"bf16": True, "optimizer": "adamw", "store": str(tmp_path)}
    trained = ranks.run(1, 1, 2, seed=1, train=2, save=2, **common)
    resumed = ranks.run(1, 2, 1, restore=[2, 1], **common)
    found, expected = whole_model(resumed), whole_model(trained)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    master, live = found["layers.0.mlp.fc1.weight/master"], found["layers.0.mlp.fc1.weight/live"]
    assert not np.array_equal(master, live)
    assert np.allclose(master, live, rtol=2**-8)


@pytest.mark.parametrize(("rank", "point"), [(1, "save"), (0, "commit")])
def test_a_rank_killed_while_saving_leaves_the_commit_before(
    ranks: Ranks, tmp_path: Path, rank: int, point: str
) -> None:
    layout = {"tensor": 1, "pipeline": 1, "data": 2, "interleave": 1}
    common = {"layout": layout, "store": str(tmp_path)}
    statuses, before = ranks.ask(seed=1, train=1, save=1, **common)
    assert statuses == [0, 0]
    statuses, _ = ranks.ask(restore=[1, 1], train=1, save=2, kill=[rank, point], **common)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] != 0
    assert CheckpointStore(tmp_path).commits() == [Commit(1, 1)]
    assert_same_model(ranks.run(1, 1, 1, restore=[1, 1], store=str(tmp_path)), before)


if __name__ == "__main__":
    serve()
