"""Cost of an optimizer step: ours against torch's Adam and a naive loop, as a share of the copy rate.

    nice -n 19 python benchmarks/optimizers.py [--parameters 8000000]

Prints nanoseconds and bytes of traffic per parameter. Bytes are the minimum of a fused step (fp32 state):
Adam 28 (w, g, m, v read; w, m, v written), Lion 20, LAMB 40 with its norms (44 with the norm of the
gradients). Runs on a GPU if there is one; on a CPU times are processor time of one thread. A copy on a CPU
also reads the cache lines that it overwrites, which does not count, so an in-place kernel can exceed 100%.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from report import write_result
from torch import Tensor

from megascale.optim.adamw import AdamW
from megascale.optim.lamb import Lamb
from megascale.optim.lion import Lion

BYTES = {"lamb": 40, "adamw": 28, "lion": 20}
BETAS, EPS, LR, DECAY = (0.9, 0.95), 1e-6, 1e-4, 0.01
PAIRS = [
    ("LAMB, ours", "LAMB, naive loop"),
    ("LAMB, ours", "AdamW, torch fused"),
    ("AdamW, ours", "AdamW, torch fused"),
    ("AdamW, ours", "AdamW, torch loop"),
    ("Lion, ours", "AdamW, torch fused"),
]
PER_LAYER = 12
"""Parameters of a layer of width h, in units of h * h: 3 + 1 + 4 + 4."""


def parameters(total: int, device: torch.device) -> list[Tensor]:
    """Weights of a 4-layer GPT of about `total` parameters."""
    hidden = math.isqrt(total // (4 * PER_LAYER)) // 8 * 8
    shapes = [(3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)] * 4
    return [torch.randn(shape, device=device).mul_(0.02).requires_grad_() for shape in shapes]


class NaiveLamb:
    """LAMB as the paper's pseudo-code reads, a tensor at a time."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        self.means = [torch.zeros_like(w) for w in weights]
        self.squares = [torch.zeros_like(w) for w in weights]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for weight, mean, square in zip(self.weights, self.means, self.squares, strict=True):
            gradient = weight.grad
            assert gradient is not None
            mean.copy_(BETAS[0] * mean + (1 - BETAS[0]) * gradient)
            square.copy_(BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient)
            mean_hat = mean / (1 - BETAS[0] ** self.steps)
            square_hat = square / (1 - BETAS[1] ** self.steps)
            update = mean_hat / (square_hat.sqrt() + EPS) + DECAY * weight
            weight.sub_(LR * (weight.norm() / update.norm()).item() * update)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of one call after two warm-up calls."""
    times = []
    on_gpu = device.type == "cuda"
    now = time.perf_counter if on_gpu else time.process_time
    for index in range(repeats + 2):
        if on_gpu:
            torch.cuda.synchronize()
        begin = now()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        if index >= 2:
            times.append(now() - begin)
    return sorted(times)[len(times) // 2]


def contestants(weights: list[Tensor]) -> list[tuple[str, str, Callable[[], object]]]:
    """(name, family, step)."""
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": DECAY}]
    settings = {"lr": LR, "betas": BETAS, "eps": EPS}
    torch_settings = settings | {"weight_decay": DECAY}
    return [
        ("LAMB, naive loop", "lamb", NaiveLamb(weights).step),
        ("LAMB, ours", "lamb", Lamb([dict(g) for g in groups], **settings).step),  # type: ignore[arg-type]
        ("AdamW, torch loop", "adamw", torch.optim.AdamW(weights, foreach=False, **torch_settings).step),  # type: ignore[arg-type]
        ("AdamW, torch fused", "adamw", torch.optim.AdamW(weights, fused=True, **torch_settings).step),  # type: ignore[arg-type]
        ("AdamW, ours", "adamw", AdamW([dict(g) for g in groups], **settings).step),  # type: ignore[arg-type]
        ("Lion, ours", "lion", Lion([dict(g) for g in groups], **settings).step),  # type: ignore[arg-type]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=8_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    weights = parameters(options.parameters, device)
    count = sum(weight.numel() for weight in weights)
    source = torch.empty(count, device=device)
    target = torch.empty_like(source)
    rate = 8 * count / seconds(lambda: target.copy_(source), device, options.repeats)
    took: dict[str, tuple[int, float]] = {}
    for name, family, step in contestants(weights):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        took[name] = BYTES[family], seconds(step, device, options.repeats)
    table = "\n".join(
        f"| {name} | {time_s / count * 1e9:.2f} | {least} | {least * count / time_s / rate:.1%} |"
        for name, (least, time_s) in took.items()
    )
    ratios = "\n".join(
        f"- {ours} takes {took[ours][1] / took[rival][1]:.2f} of the time of {rival}" for ours, rival in PAIRS
    )
    body = f"""{device.type}, {count:,} parameters, copy {rate / 1e9:.1f} GB/s (read + written).

| optimizer | ns per parameter | bytes per parameter, least | of the copy rate |
|---|---|---|---|
{table}

{ratios}"""
    print(body)
    write_result(f"optimizers_{device.type}", body)


if __name__ == "__main__":
    main()
