"""Cost of an optimizer step: ours against torch's Adam and a naive loop, as a share of the copy rate.

    nice -n 19 python benchmarks/optimizers.py [--parameters 8000000]

Prints nanoseconds and bytes of traffic per parameter. Bytes are the least a fused step moves (fp32 state):
Adam 28 (w, g, m, v read; w, m, v written), Lion 20, LAMB 44 with its norms taken along, 48 as ours is
built. Runs on a GPU where there is one. On a CPU a copy also reads the lines it overwrites, which is not
counted, so a kernel that works in place can come out above 100%.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megascale.optim.adamw import AdamW
from megascale.optim.lamb import Lamb
from megascale.optim.lion import Lion

RESULTS = Path(__file__).parent / "results"
BYTES = {"lamb": 44, "adamw": 28, "lion": 20}
BETAS, EPS, LR, DECAY = (0.9, 0.95), 1e-6, 1e-4, 0.01
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
    for index in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            times.append(time.perf_counter() - begin)
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
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    weights = parameters(options.parameters, device)
    count = sum(weight.numel() for weight in weights)
    source = torch.empty(count, device=device)
    target = torch.empty_like(source)
    rate = 8 * count / seconds(lambda: target.copy_(source), device, options.repeats)
    print(f"{device.type}, {count:,} parameters, copy {rate / 1e9:.1f} GB/s (read + written)")
    rows = []
    for name, family, step in contestants(weights):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        took = seconds(step, device, options.repeats)
        row = {
            "optimizer": name,
            "nsPerParameter": took / count * 1e9,
            "bytesPerParameter": BYTES[family],
            "ofCopyRate": BYTES[family] * count / took / rate,
        }
        rows.append(row)
        ns, least = row["nsPerParameter"], row["bytesPerParameter"]
        print(f"{name:20} {ns:8.2f} ns  {least} bytes  {row['ofCopyRate']:6.1%} of copy", flush=True)
    today = datetime.date.today()  # noqa: DTZ011
    record = {"date": str(today), "device": device.type, "threads": 1, "torch": torch.__version__}
    record |= {"parameters": count, "copyBytesPerSecond": rate, "rows": rows}
    output = options.output or RESULTS / f"optimizers-{device.type}-{today}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
