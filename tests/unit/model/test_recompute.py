from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megascale.model.gpt import Gpt
from megascale.model.shape import ModelShape

SHAPE = ModelShape(num_layers=3, hidden_size=32, attention_heads=4, kv_heads=2, ffn_hidden_size=128, window=4)


def train(model: Gpt) -> tuple[list[Tensor], int]:
    """Gradients of one forward and backward pass, and the values kept between the two."""
    tokens = torch.arange(2 * 16).view(2, 16)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, None, None, labels=tokens).mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None], sum(kept.values())


@pytest.mark.parametrize("block", ["parallel", "serial"])
def test_recomputing_keeps_less_and_changes_no_bit(block: str, build: Callable[..., Gpt]) -> None:
    shape = ModelShape(**{**{f: getattr(SHAPE, f) for f in SHAPE.__slots__}, "block": block})
    plain, kept = train(build(shape, 16))
    for recompute in ("selective", "full"):
        again, kept_less = train(build(shape, 16, recompute))
        assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
        assert kept_less < kept
        kept = kept_less
