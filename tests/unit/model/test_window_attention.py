"""Attention backends against one query at a time, over exactly the keys it may see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megascale.errors import InputError
from megascale.model.attention import Backend, Reference, window_mask
from megascale.model.kernels import Flash, Varlen, choose_backend

CPU = torch.device("cpu")


def brute_force(query: Tensor, key: Tensor, value: Tensor, window: int | None, ends: list[int]) -> Tensor:
    """(batch, sequence, heads, size); `ends` are borders of documents in the rows laid end to end."""
    batch, sequence, heads, size = query.shape
    repeat = heads // key.size(2)
    out = []
    for b in range(batch):
        for i in range(sequence):
            document = max(end for end in ends if end <= b * sequence + i) - b * sequence
            first = max(document, 0 if window is None else i - window + 1)
            keys, values = (t[b, first : i + 1].repeat_interleave(repeat, dim=1) for t in (key, value))
            weights = torch.softmax(torch.einsum("khd,hd->kh", keys, query[b, i]) / math.sqrt(size), dim=0)
            out.append(torch.einsum("kh,khd->hd", weights, values))
    return torch.stack(out).view(batch, sequence, heads, size)


def segments(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, left: int, *, expect_groups: bool = True
) -> Tensor:
    """What FlashAttention-2 does with packed (tokens, heads, size) tensors, in plain torch."""
    assert expect_groups or key.size(1) == query.size(1)
    key, value = (t.repeat_interleave(query.size(1) // t.size(1), dim=1) for t in (key, value))
    parts = []
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        mask = window_mask(end - start, end - start if left < 0 else left + 1, CPU)
        parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    return torch.cat(parts, dim=1).transpose(0, 1)


def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, *places: Any, **options: Any) -> Tensor:
    cu_q, cu_k, max_q, max_k = places
    assert cu_q is cu_k
    assert max_q == max_k >= int(cu_q.diff().max())
    assert options.pop("causal")
    left, right = options.pop("window_size")
    assert right == 0
    assert not options
    return segments(q, k, v, cu_q, left)


def varlen_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *places: Any,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    assert window_size[1] == 0
    return segments(q, k, v, places[0], window_size[0], expect_groups=enable_gqa)


def varlen_attn_of_torch_2_11(
    q: Tensor, k: Tensor, v: Tensor, *places: Any, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    return segments(q, k, v, places[0], window_size[0], expect_groups=False)


BACKENDS: list[Backend] = [
    Reference(),
    Flash(flash_attn_varlen_func),
    Varlen(varlen_attn),
    Varlen(varlen_attn_of_torch_2_11),
]


@dataclass
class Case:
    """Inputs (batch, sequence, heads, size) and what is seen of them."""

    inputs: list[Tensor]
    window: int | None
    ends: list[int] | None

    def borders(self, device: torch.device = CPU) -> Tensor | None:
        return None if self.ends is None else torch.tensor(self.ends, dtype=torch.int32, device=device)

    def expected_ends(self) -> list[int]:
        batch, sequence = self.inputs[0].shape[:2]
        return self.ends or list(range(0, (batch + 1) * sequence, sequence))


@st.composite
def cases(draw: Callable[..., Any], *, longest: int = 12, size: int = 4) -> Case:
    batch, sequence = draw(st.integers(1, 2)), draw(st.integers(1, longest))
    window = draw(st.none() | st.integers(1, longest + 2))
    kv_heads, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    ends = None
    if draw(st.booleans()):
        inner = draw(st.sets(st.integers(1, batch * sequence)))
        ends = sorted({*range(0, (batch + 1) * sequence, sequence), *inner})
    torch.manual_seed(draw(st.integers(0, 1000)))
    shapes = [(batch, sequence, heads, size) for heads in (kv_heads * groups, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return Case(inputs, window, ends)


@pytest.mark.parametrize("backend", BACKENDS, ids=["reference", "flash", "varlen", "varlen-2.11"])
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_attention_and_its_gradients_equal_brute_force(backend: Backend, case: Case) -> None:
    """The two kernels are stood in for; what is tested of them is how they are called."""
    ours = backend(*case.inputs, case.window, case.borders())
    theirs = brute_force(*case.inputs, case.window, case.expected_ends())
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, case.inputs, upstream),
        torch.autograd.grad(theirs, case.inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: attention kernels need a GPU")
@pytest.mark.parametrize("name", ["flash", "varlen"])
@settings(max_examples=40, deadline=None)
@given(case=cases(longest=300, size=64))
def test_kernels_equal_the_reference_on_a_gpu(name: str, case: Case) -> None:
    """In bf16 and its tolerance, against the reference in float64 on the same rounded inputs."""
    device = torch.device("cuda", 0)
    try:
        backend = choose_backend(name, device, torch.bfloat16).backend  # type: ignore[arg-type]
    except InputError as error:
        pytest.skip(f"NOT TESTED: {error}")
    half = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in case.inputs]
    exact = [x.detach().double().requires_grad_() for x in half]
    ours = backend(*half, case.window, case.borders(device))
    theirs = Reference()(*exact, case.window, case.borders(device))
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-2, atol=2e-2)
    upstream = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, half, upstream.bfloat16()),
        torch.autograd.grad(theirs, exact, upstream.bfloat16().double()),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), other, rtol=3e-2, atol=3e-2)


def test_the_window_counts_the_token_itself() -> None:
    mask = window_mask(5, 2, CPU)
    assert mask.sum(dim=1).tolist() == [1, 2, 2, 2, 2]
    assert mask[4].tolist() == [False, False, False, True, True]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        window_mask(4, 0, CPU)


def test_on_a_cpu_auto_takes_the_reference_and_says_why() -> None:
    chosen = choose_backend("auto", CPU, torch.float32)
    assert chosen.backend.name == "reference"
    assert "flash needs a CUDA device, this rank has cpu" in chosen.reason
    assert "varlen needs a CUDA device" in chosen.reason
    assert choose_backend("reference", CPU, torch.float32).reason == "asked for"


@pytest.mark.parametrize("asked", ["flash", "varlen"])
def test_a_backend_that_cannot_run_is_refused_by_name(asked: Any) -> None:
    with pytest.raises(InputError, match=rf"attention is {asked}: {asked} needs a CUDA device.*use auto"):
        choose_backend(asked, CPU, torch.float32)


def test_on_a_gpu_the_first_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    gpu = torch.device("cuda", 0)
    chosen = choose_backend("auto", gpu, torch.bfloat16)
    assert chosen.backend.name == "varlen"
    assert chosen.reason == "flash the package flash-attn is not installed"
    assert choose_backend("auto", gpu, torch.float32).backend.name == "reference"
