"""Compiled layers compute what the others do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed
from torch._dynamo.testing import CompileCounterWithBackend

from megascale.engine.bridge import cpu_bridge
from megascale.engine.compiling import compile_chunks
from megascale.engine.feed import MicroBatch
from megascale.engine.groups import Groups, build_groups
from megascale.engine.rng import seed_all
from megascale.engine.state import build_engine
from megascale.engine.stepper import Stepper
from megascale.job.megatron import Optimizer
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape

SHAPE = ModelShape(
    num_layers=3, hidden_size=32, attention_heads=4, kv_heads=2, ffn_hidden_size=64, window=8, qk_norm=True
)
SEQUENCE = 16


@pytest.fixture
def groups() -> Iterator[Groups]:
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        yield build_groups(Layout(tensor=1, pipeline=1, data=1))
        distributed.destroy_process_group()


def losses(groups: Groups, compiler: CompileCounterWithBackend | None) -> list[float]:
    seed_all(1, groups.coordinates)
    state = build_engine(
        SHAPE,
        Optimizer(name="adamw", lr=0.01),
        groups,
        sequence_length=SEQUENCE,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=1,
    )
    if compiler is not None:
        compile_chunks(state.chunks, compiler)  # type: ignore[arg-type] # torch takes a name or a callable
    stepper = Stepper(
        state,
        micro_batch=2,
        sequence_length=SEQUENCE,
        clip_grad=1.0,
        on_forward=lambda _: None,
        on_backward=lambda _: None,
    )
    tokens: Tensor = torch.randint(0, 250, (2, SEQUENCE + 1), generator=torch.Generator().manual_seed(2))
    batch = MicroBatch(tokens[:, :-1], tokens[:, 1:])
    found = []
    for _ in range(3):
        stepper.forward_backward([batch])
        found.append(stepper.update(0.01, []).loss)
    return found


def test_layers_share_one_graph_and_losses_stay(groups: Groups) -> None:
    compiler = CompileCounterWithBackend("aot_eager")
    assert losses(groups, compiler) == pytest.approx(losses(groups, None), rel=1e-5)
    # One graph for the layers, one for the loss.
    assert compiler.frame_count == 2
