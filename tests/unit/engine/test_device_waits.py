"""How often a step makes the host wait for the device: once, for the loss and the gradient norm."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.overrides import TorchFunctionMode

from megascale.data.ramp import BatchSizes
from megascale.engine.device import Device, open_device
from megascale.engine.feed import Feed
from megascale.engine.groups import build_groups
from megascale.engine.rng import seed_all
from megascale.engine.state import EngineState, build_engine
from megascale.engine.stepper import Stepper
from megascale.job.megatron import Optimizer
from megascale.model.kernels import choose_backend
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape

SEQUENCE = 64
SHAPE = ModelShape(
    num_layers=2, hidden_size=128, attention_heads=2, kv_heads=2, ffn_hidden_size=256, window=16
)
READS = {
    getattr(Tensor, name)
    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")
}


class Tokens:
    """Samples without files."""

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        generator = np.random.default_rng(first_index)
        return generator.integers(0, SHAPE.vocab_size, (count, SEQUENCE + 1))

    def documents(self, _first_index: int, count: int) -> NDArray[np.int32]:
        return np.zeros((count, SEQUENCE), dtype=np.int32)


class HostReads(TorchFunctionMode):
    """Counts the calls that give values of tensors to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device(0) as opened:
        store = distributed.HashStore()
        distributed.init_process_group(opened.backend, store=store, rank=0, world_size=1)
        yield opened
        distributed.destroy_process_group()


@pytest.fixture
def step(device: Device) -> Callable[[str], Callable[[int], None]]:
    """Makes a callable that runs a step of the engine with an optimizer, its data and its votes included."""

    def make(optimizer: str) -> Callable[[int], None]:
        groups = build_groups(Layout(tensor=1, pipeline=1, data=1))
        seed_all(1, groups.coordinates)
        state = _state(optimizer, groups, device)
        stepper = Stepper(
            state,
            micro_batch=2,
            sequence_length=SEQUENCE,
            clip_grad=1e-3,
            on_forward=lambda _: None,
            on_backward=lambda _: None,
        )
        feed = Feed(
            Tokens(),
            batches=BatchSizes.constant(4),
            micro_batch=2,
            data_rank=0,
            data_size=1,
            device=device.torch_device,
            vocab_size=257,
        )

        def run(number: int) -> None:
            stepper.forward_backward(feed.load(number))
            assert stepper.update(1e-3, [0.0, 1.0]).votes == [0.0, 1.0]
            state.prefetch_parameters()

        return run

    return make


def _state(optimizer: str, groups: Any, device: Device) -> EngineState:
    dtype = device.dtype("auto")
    return build_engine(
        SHAPE,
        Optimizer(name=optimizer),  # type: ignore[arg-type]
        groups,
        sequence_length=SEQUENCE,
        device=device.torch_device,
        dtype=dtype,
        seed=1,
        backend=choose_backend("auto", device.torch_device, dtype).backend,
    )


@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "lion"])
def test_values_come_to_python_once_per_step(
    optimizer: str, step: Callable[[str], Callable[[int], None]]
) -> None:
    """LAMB also reads its updates so far, which lie on the host, and on a CPU its rates; for two groups."""
    run = step(optimizer)
    run(1)
    with HostReads() as reads:
        run(2)
    counters = {"__float__": 2, "tolist": 1 + 2} if optimizer == "lamb" else {"tolist": 1}
    assert reads.counts == counters


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NOT TESTED: device synchronisations are counted on a GPU"
)
@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "lion"])
def test_the_host_waits_for_the_gpu_once_per_step(
    optimizer: str, step: Callable[[str], Callable[[int], None]]
) -> None:
    run = step(optimizer)
    for number in (1, 2):
        run(number)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) == 1, waits
