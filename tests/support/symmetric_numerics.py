"""The overlapped block against the plain one, on two tensor-parallel ranks over gloo; prints JSON.

torch's fused operations exist for GPUs only. Here the gather is torch's own fallback of it, and the pipeline
of the scatter is its docstring: chunks produced one after the other, then an all-to-all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor, distributed
from torch import multiprocessing as processes
from torch.distributed import _symmetric_memory as memory

from megascale.engine.bridge import cpu_bridge
from megascale.engine.groups import Groups, build_groups
from megascale.model.gpt import Gpt, transformer_config
from megascale.model.layout import Layout
from megascale.model.parameters import initialise, parameter_boxes
from megascale.model.shape import ModelShape

RANKS, SEQUENCE, BATCH = 2, 12, 3
CASES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "swiglu": {"activation": "swiglu", "kv_heads": 2, "qk_norm": True, "window": 5},
    "experts": {"experts": 2, "experts_per_token": 1},
}
calls: Counter[str] = Counter()


def gather(*arguments: Any, **options: Any) -> Any:
    calls["gather"] += 1
    return memory._fused_all_gather_matmul_fallback(*arguments, **options)


def scatter(produce: Callable[[int, Tensor], None], output: Tensor, group_name: str) -> None:
    calls["scatter"] += 1
    made = torch.full_like(output, torch.nan)
    for rank, chunk in enumerate(made.chunk(RANKS)):
        produce(rank, chunk)
    group = distributed.distributed_c10d._resolve_process_group(group_name)
    distributed.all_to_all_single(output, made, group=group)


def run(shape: ModelShape, groups: Groups, *, overlap: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one micro-batch."""
    config = transformer_config(shape, groups.layout, dtype=torch.float32, on_cpu=True)
    model = Gpt(
        config,
        shape,
        SEQUENCE,
        groups.collection,
        first=True,
        last=True,
        chunk=None,
        overlap_tensor=overlap,
    )
    boxes = list(parameter_boxes(model, shape))
    initialise(boxes, shape, seed=7)
    tokens = torch.randint(0, 250, (BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(3))
    loss = model(tokens[:, :-1], None, None, labels=tokens[:, 1:]).mean()
    loss.backward()
    return loss.detach(), {box.name: box.parameter.grad for box in boxes}


def compare(case: str, groups: Groups) -> dict[str, float]:
    shape = ModelShape(
        num_layers=2,
        hidden_size=32,
        attention_heads=4,
        ffn_hidden_size=64,
        **{"kv_heads": 4, "init_std": 0.2} | CASES[case],
    )
    loss, gradients = run(shape, groups, overlap=False)
    calls.clear()
    same_loss, same = run(shape, groups, overlap=True)
    errors = [
        float((same[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3))
        for name, gradient in gradients.items()
    ]
    return {"loss": float((same_loss - loss).abs() / loss), "gradients": max(errors)} | dict(calls)


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    library = torch.library.Library("symm_mem", "IMPL")
    library.impl("fused_all_gather_matmul", gather, "CPU")
    memory._pipelined_produce_and_all2all = scatter
    store = distributed.FileStore(f"{folder}/store", RANKS)
    with cpu_bridge():
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
        model_parallel_cuda_manual_seed(1, tp_rank=rank, ep_rank=0, etp_rank=0, force_reset_rng=True)
        groups = build_groups(Layout(tensor=RANKS, pipeline=1, data=1, sequence=True))
        found = {case: compare(case, groups) for case in CASES}
        distributed.destroy_process_group()
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        processes.start_processes(rank_main, (made,), nprocs=RANKS, start_method="fork")
        json.dump([json.loads(Path(made, f"rank-{r}.json").read_text()) for r in range(RANKS)], sys.stdout)
