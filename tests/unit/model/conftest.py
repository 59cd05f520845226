from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import distributed

from megascale.engine.bridge import cpu_bridge
from megascale.engine.groups import Groups, build_groups
from megascale.model.gpt import Gpt, Recompute, transformer_config
from megascale.model.layout import Layout
from megascale.model.parameters import initialise, parameter_boxes
from megascale.model.shape import ModelShape

Build = Callable[..., Gpt]
ONE = Layout(tensor=1, pipeline=1, data=1)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """The groups of a world of one rank, with the CPU bridge entered."""
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        model_parallel_cuda_manual_seed(1, tp_rank=0, ep_rank=0, etp_rank=0, force_reset_rng=True)
        yield build_groups(ONE)
        distributed.destroy_process_group()


@pytest.fixture
def build(groups: Groups) -> Build:
    """Make an initialised model of a shape for a sequence length."""

    def make(shape: ModelShape, sequence_length: int, recompute: Recompute = "none") -> Gpt:
        config = transformer_config(shape, ONE, dtype=torch.float32, on_cpu=True, recompute=recompute)
        model = Gpt(config, shape, sequence_length, groups.collection, first=True, last=True, chunk=None)
        initialise(list(parameter_boxes(model, shape)), shape, seed=7)
        return model

    return make
