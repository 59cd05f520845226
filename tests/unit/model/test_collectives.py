"""Collectives under tensor parallelism, counted on one process that plays rank 0 of several.

torch's "fake" backend answers every collective at once with whatever is in the output: numbers are wrong, but
the calls and their sizes are those of a real run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from megascale.engine.bridge import cpu_bridge
from megascale.engine.groups import Groups, build_groups
from megascale.model.gpt import Gpt, transformer_config
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape
from megascale.model.traffic import traffic

TENSOR, SEQUENCE, BATCH = 4, 16, 2
KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
}


class Collectives(TorchDispatchMode):
    """Counts collectives of at least one activation's size, and the bytes rank 0 sends in ring algorithms."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.values = 0.0
        self._smallest = smallest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = KINDS.get(func.__name__.split(".")[0]) if func.namespace == "c10d" else None
        if kind:
            tensors = [tensor for part in args[:2] for tensor in _tensors(part)]
            largest = max(tensor.numel() for tensor in tensors)
            if largest >= self._smallest:
                self.counts[kind] += 1
                passes = 2 if kind == "all-reduce" else 1
                self.values += passes * largest * (TENSOR - 1) / TENSOR
        return func(*args, **(kwargs or {}))


def _tensors(part: Any) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    return [t for t in part if isinstance(t, Tensor)] if isinstance(part, list | tuple) else []


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "sequence"])
def groups(request: pytest.FixtureRequest) -> Iterator[Groups]:
    with cpu_bridge():
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=TENSOR)
        model_parallel_cuda_manual_seed(1, tp_rank=0, ep_rank=0, etp_rank=0, force_reset_rng=True)
        yield build_groups(Layout(tensor=TENSOR, pipeline=1, data=1, sequence=request.param))
        distributed.destroy_process_group()
        parallel_state.destroy_model_parallel()


def shape_of(block: str, layers: int) -> ModelShape:
    return ModelShape(
        num_layers=layers,
        hidden_size=32,
        attention_heads=4,
        kv_heads=4,
        ffn_hidden_size=64,
        block=block,  # type: ignore[arg-type]
    )


@pytest.fixture
def count(groups: Groups) -> Callable[[str, int], tuple[Collectives, Collectives]]:
    def run(block: str, layers: int) -> tuple[Collectives, Collectives]:
        """Collectives of the forward and of the backward pass of one micro-batch."""
        shape = shape_of(block, layers)
        config = transformer_config(shape, groups.layout, dtype=torch.float32, on_cpu=True)
        model = Gpt(config, shape, SEQUENCE, groups.collection, first=True, last=True, chunk=None)
        tokens = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
        forward, backward = (Collectives(SEQUENCE * BATCH * 32) for _ in range(2))
        with forward:
            loss = model(tokens, None, None, labels=tokens).nan_to_num().mean()
        with backward:
            loss.backward()
        return forward, backward

    return run


def per_layer(
    count: Callable[[str, int], tuple[Collectives, Collectives]], block: str
) -> tuple[Counter[str], Counter[str]]:
    """What a second layer adds."""
    (forward, backward), (forward_1, backward_1) = count(block, 2), count(block, 1)
    forward.counts.subtract(forward_1.counts)
    backward.counts.subtract(backward_1.counts)
    return forward.counts, backward.counts


def test_the_parallel_block_needs_one_collective_in_and_one_out(
    count: Callable[[str, int], tuple[Collectives, Collectives]], groups: Groups
) -> None:
    forward, backward = per_layer(count, "parallel")
    if groups.layout.sequence:
        assert forward == backward == {"all-gather": 1, "reduce-scatter": 1}
    else:
        assert forward == backward == {"all-reduce": 1}


def test_the_serial_block_needs_twice_as_many(
    count: Callable[[str, int], tuple[Collectives, Collectives]], groups: Groups
) -> None:
    forward, backward = per_layer(count, "serial")
    if groups.layout.sequence:
        assert forward == {"all-gather": 2, "reduce-scatter": 2}
        # megatron-core's column-parallel layers gather their inputs again.
        assert backward == {"all-gather": 2 + 2, "reduce-scatter": 2}
    else:
        assert forward == backward == {"all-reduce": 2}


@pytest.mark.parametrize("block", ["parallel", "serial"])
def test_predicted_bytes_are_what_the_layers_send(
    block: str, count: Callable[[str, int], tuple[Collectives, Collectives]], groups: Groups
) -> None:
    def predicted(layers: int) -> int:
        batch = {"sequence_length": SEQUENCE, "micro_batch": BATCH, "micro_batches": 1}
        (only,) = traffic(shape_of(block, layers), groups.layout, gpus_per_node=8, **batch)
        assert (only.dimension, only.link) == ("tensor", "node")
        return only.bytes

    sent = [sum(part.values for part in count(block, layers)) for layers in (1, 3)]
    # Predicted are bf16 activations.
    assert predicted(3) - predicted(1) == 2 * (sent[1] - sent[0])
