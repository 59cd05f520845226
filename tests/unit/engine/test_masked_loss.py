"""Predictions that do not count: loss and gradient are those of the mean of the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed

from megascale.engine.bridge import cpu_bridge
from megascale.engine.feed import MicroBatch
from megascale.engine.groups import Groups, build_groups
from megascale.engine.rng import seed_all
from megascale.engine.state import EngineState, build_engine
from megascale.engine.stepper import Stepper
from megascale.job.megatron import Optimizer
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape

SHAPE = ModelShape(num_layers=2, hidden_size=32, attention_heads=4, kv_heads=2, ffn_hidden_size=64)
SEQUENCE = 16


@pytest.fixture
def groups() -> Iterator[Groups]:
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        yield build_groups(Layout(tensor=1, pipeline=1, data=1))
        distributed.destroy_process_group()


def build(groups: Groups, clip_grad: float) -> tuple[EngineState, Stepper]:
    seed_all(1, groups.coordinates)
    state = build_engine(
        SHAPE,
        Optimizer(name="adamw"),
        groups,
        sequence_length=SEQUENCE,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=1,
    )
    stepper = Stepper(
        state,
        micro_batch=2,
        sequence_length=SEQUENCE,
        clip_grad=clip_grad,
        on_forward=lambda _: None,
        on_backward=lambda _: None,
    )
    return state, stepper


def batches() -> list[MicroBatch]:
    """Two micro-batches of which 5 and 30 predictions count."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for counted_tokens in (5, 30):
        tokens = torch.randint(0, 250, (2, SEQUENCE + 1), generator=generator)
        counted = torch.zeros(2 * SEQUENCE, dtype=torch.bool)
        counted[torch.randperm(2 * SEQUENCE, generator=generator)[:counted_tokens]] = True
        made.append(
            MicroBatch(tokens[:, :-1], tokens[:, 1:], None, counted.view(2, SEQUENCE), counted_tokens)
        )
    return made


def reference(state: EngineState) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the mean over all predictions that count, by autograd alone."""
    model = state.chunks[0].module
    total = torch.zeros(())
    for batch in batches():
        losses = model(batch.tokens, None, None, labels=batch.labels)
        total = total + losses[batch.counted].sum()
    parameters = [box.parameter for box in state.boxes]
    gradients = torch.autograd.grad(total / 35, parameters)
    return total.item() / 35, list(gradients)


@pytest.mark.parametrize("clip_grad", [0.0, 0.1])
def test_every_counted_prediction_weighs_the_same(groups: Groups, clip_grad: float) -> None:
    state, stepper = build(groups, clip_grad)
    loss, gradients = reference(state)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    before = [box.parameter.detach().clone() for box in state.boxes]
    stepper.forward_backward(batches())
    result = stepper.update(1e-3, [])
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    assert result.tokens == 35
    # The first moment is (1 - beta1) times the gradient that the optimizer read.
    read = norm if clip_grad == 0.0 else clip_grad
    moments = [moment["exp_avg"].norm() for moment in state.inner.state.values()]
    assert torch.stack(moments).norm().item() == pytest.approx(0.1 * read, rel=1e-4)
    assert any(not torch.equal(box.parameter, old) for box, old in zip(state.boxes, before, strict=True))


def test_a_batch_without_a_prediction_that_counts_changes_no_moment(groups: Groups) -> None:
    state, stepper = build(groups, 1.0)
    none = torch.zeros(2, SEQUENCE, dtype=torch.bool)
    stepper.forward_backward([batch._replace(counted=none, counted_tokens=0) for batch in batches()])
    result = stepper.update(1e-3, [])
    assert (result.loss, result.grad_norm, result.tokens) == (0.0, 0.0, 0)
    assert all(not moment["exp_avg"].any() for moment in state.inner.state.values())
