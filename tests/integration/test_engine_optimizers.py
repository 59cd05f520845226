"""Sharded optimizers against unsharded ones in float64, step for step, under every layout.

Gradients are known ones, a function of parameter and step, cut the way a rank holds its masters. The masters
are compared with a float64 reference on whole parameters.
"""

from __future__ import annotations

import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

STEPS = 4
LR, BETAS, EPS, DECAY = 0.05, (0.9, 0.95), 1e-6, 0.1
CASES = {
    "lamb": ("lamb", DECAY),
    "lamb-without-decay": ("lamb", 0.0),
    "adamw": ("adamw", DECAY),
    "lion": ("lion", DECAY),
}
"""Optimizer and weight decay."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {"tensor": 1, "pipeline": 1, "data": 1},
    "dp2": {"tensor": 1, "pipeline": 1, "data": 2},
    "tp2": {"tensor": 2, "pipeline": 1, "data": 1},
    "pp2": {"tensor": 1, "pipeline": 2, "data": 1},
    "tp2-dp2": {"tensor": 2, "pipeline": 1, "data": 2},
    "tp2-pp2-sequence": {"tensor": 2, "pipeline": 2, "data": 1, "sequence": True},
    "pp2-dp2-interleaved": {"tensor": 1, "pipeline": 2, "data": 2, "interleave": 2},
}


def gradient(name: str, shape: tuple[int, ...], step: int) -> Any:
    """Known gradient of a whole parameter, float64."""
    import torch

    from megascale.model.parameters import initial_values
    from megascale.model.shape import ModelShape

    unit = ModelShape(
        num_layers=1, hidden_size=4, attention_heads=1, kv_heads=1, ffn_hidden_size=4, init_std=1.0
    )
    return initial_values(
        f"gradient.{step}/{name.replace('norm', 'n')}", shape, unit, step, torch.device("cpu")
    ).double()


def reference(case: str, start: dict[str, Any]) -> dict[str, Any]:
    """Whole parameters after STEPS steps."""
    import torch

    kind, weight_decay = CASES[case]
    weights = {name: value.double().clone() for name, value in start.items()}
    means = {name: torch.zeros_like(value) for name, value in weights.items()}
    squares = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(1, STEPS + 1):
        for name, weight in weights.items():
            g, decay = gradient(name, tuple(weight.shape), step), weight_decay if "norm" not in name else 0.0
            if kind == "lion":
                update = torch.sign(BETAS[0] * means[name] + (1 - BETAS[0]) * g) + decay * weight
                means[name] = BETAS[1] * means[name] + (1 - BETAS[1]) * g
                weight.sub_(LR * update)
                continue
            means[name] = BETAS[0] * means[name] + (1 - BETAS[0]) * g
            squares[name] = BETAS[1] * squares[name] + (1 - BETAS[1]) * g * g
            scale = (squares[name] / (1 - BETAS[1] ** step)).sqrt() + EPS
            update = means[name] / (1 - BETAS[0] ** step) / scale + decay * weight
            norms = weight.norm(), update.norm()
            trusted = kind == "lamb" and "norm" not in name and min(norms) > 0
            weight.sub_(LR * (norms[0] / norms[1] if trusted else 1.0) * update)
    return weights


def run(rank: int, layout: dict[str, Any], folder: Path, sender: Connection) -> None:
    """One rank: every optimizer in turn; sends the largest deviations or a traceback."""
    try:
        sender.send({case: deviation(rank, layout, case, folder) for case in CASES})
    except BaseException:  # noqa: BLE001 - the parent shows it
        sender.send(traceback.format_exc())


def deviation(rank: int, sizes: dict[str, Any], case: str, folder: Path) -> float:
    """Largest relative difference between this rank's masters and the reference."""
    import torch
    from torch import distributed

    from megascale.engine.bridge import cpu_bridge
    from megascale.engine.groups import build_groups
    from megascale.engine.rng import seed_all
    from megascale.engine.state import build_engine
    from megascale.job.megatron import Optimizer
    from megascale.model.layout import Layout
    from megascale.model.parameters import initial_values
    from megascale.model.shape import ModelShape

    torch.set_num_threads(1)
    layout = Layout(**sizes)
    shape = ModelShape(
        num_layers=4, hidden_size=16, attention_heads=4, kv_heads=2, ffn_hidden_size=24, qk_norm=True
    )
    kind, decay = CASES[case]
    settings = Optimizer(name=kind, lr=LR, weight_decay=decay, beta1=BETAS[0], beta2=BETAS[1], eps=EPS)
    worst = 0.0
    with cpu_bridge():
        store = distributed.FileStore(str(folder / case), layout.world_size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=layout.world_size)
        groups = build_groups(layout)
        seed_all(1, groups.coordinates)
        cpu = torch.device("cpu")
        state = build_engine(
            shape, settings, groups, sequence_length=8, device=cpu, dtype=torch.float32, seed=7
        )
        boxes = {box.parameter: box for box in state.boxes}
        for group in state.inner.param_groups:
            group["lr"] = LR

        def cut(whole: Any, box: Any, start: int, end: int) -> Any:
            inside = tuple(slice(o, o + s) for o, s in zip(box.offset, box.shape, strict=True))
            return whole[inside].reshape(-1)[start:end]

        for step in range(1, STEPS + 1):
            for parameter, master, start, end in state.masters():
                box = boxes[parameter]
                whole = gradient(box.name, box.global_shape, step)
                master.grad = cut(whole, box, start, end).float().view(master.shape)
            state.inner.step()
        names = {box.name: box.global_shape for box in state.boxes}
        expected = reference(case, {n: initial_values(n, s, shape, 7, cpu) for n, s in names.items()})
        for parameter, master, start, end in state.masters():
            right = cut(expected[boxes[parameter].name], boxes[parameter], start, end)
            difference = (master.detach().double().view(-1) - right).abs() / (right.abs() + 1e-3)
            worst = max(worst, difference.max().item())
        distributed.barrier()
        distributed.destroy_process_group()
    return worst


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_updates_like_the_unsharded_reference(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    context = get_context("forkserver")
    context.set_forkserver_preload(["megascale.engine.rank", "megascale.engine.bridge"])
    receivers, ranks = [], []
    for rank in range(layout["tensor"] * layout["pipeline"] * layout["data"]):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run, args=(rank, layout, tmp_path, sender), daemon=True)
        process.start()
        receivers.append(receiver)
        ranks.append(process)
    found = [receiver.recv() if receiver.poll(90) else "no answer" for receiver in receivers]
    for process in ranks:
        process.join(10)
        process.kill()
    for answer in found:
        assert isinstance(answer, dict), answer
        assert answer.keys() == CASES.keys()
        # fp32 against float64 over four steps.
        assert max(answer.values()) < 2e-4, answer
