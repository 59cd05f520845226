"""Does it learn as well? LAMB at 4x batch against AdamW, parallel block + window against serial + all keys.

    nice -n 19 python benchmarks/convergence.py [--tokens 1000000] [--data PREFIX]

Every variant sees the same tokens in the same order, each once, so the training loss is that of unseen text.
Writes `benchmarks/results/convergence-<date>.json` and `.svg`. The paper's claims (MegaScale figure 10) are
for 13B parameters and some 100e9 tokens; this is a model of some 0.4e6 on about 1e6 tokens: it shows that the
pieces are sound, no more. A variant that the day's record holds already is not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from megascale.data.samples import SampleStream
from megascale.engine.bridge import cpu_bridge
from megascale.engine.feed import Feed
from megascale.engine.groups import build_groups
from megascale.engine.rng import seed_all
from megascale.engine.state import build_engine
from megascale.engine.stepper import Stepper
from megascale.job.megatron import Optimizer
from megascale.model.flops import training_flops
from megascale.model.inventory import parameter_count
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape
from megascale.optim.schedules import learning_rate

SEQUENCE = 128
SHAPE = ModelShape(
    num_layers=3, hidden_size=96, attention_heads=4, kv_heads=4, ffn_hidden_size=384, window=32
)
BATCH = 8
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Variant:
    """One curve."""

    name: str
    block: str
    window: int | None
    optimizer: str
    lr: float
    batch: int


VARIANTS = [
    Variant("AdamW, batch 1x, parallel + window", "parallel", 32, "adamw", 3e-3, BATCH),
    Variant("LAMB, batch 4x, parallel + window", "parallel", 32, "lamb", 3e-2, 4 * BATCH),
    Variant("AdamW, batch 1x, serial + full attention", "serial", None, "adamw", 3e-3, BATCH),
]


def train(variant: Variant, samples: SampleStream, tokens: int) -> dict[str, Any]:
    """Train over `tokens` tokens; losses per step and the time they took."""
    layout = Layout(tensor=1, pipeline=1, data=1)
    groups = build_groups(layout)
    seed_all(1, groups.place)
    shape = replace(SHAPE, block=variant.block, window=variant.window)  # type: ignore[arg-type]
    settings = Optimizer(name=variant.optimizer, lr=variant.lr, weight_decay=0.1)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    state = build_engine(
        shape, settings, groups, sequence_length=SEQUENCE, device=cpu, dtype=torch.float32, seed=1
    )
    stepper = Stepper(
        state,
        micro_batch=variant.batch,
        sequence_length=SEQUENCE,
        clip_grad=settings.clip_grad,
        on_forward=lambda _: None,
        on_backward=lambda _: None,
    )
    feed = Feed(
        samples,
        global_batch=variant.batch,
        micro_batch=variant.batch,
        data_rank=0,
        data_size=1,
        device=cpu,
    )
    steps = tokens // (variant.batch * SEQUENCE)
    losses, begin = [], time.monotonic()
    for step in range(1, steps + 1):
        stepper.forward_backward(feed.load(step))
        lr = learning_rate(
            step, name="cosine", peak=variant.lr, floor=0.0, warmup_steps=steps // 20, total_steps=steps
        )
        losses.append(stepper.update(lr, []).loss)
    seconds = time.monotonic() - begin
    return {
        "variant": asdict(variant),
        "parameters": parameter_count(shape),
        "flops": training_flops(shape, steps * variant.batch, SEQUENCE),
        "steps": steps,
        "tokens": steps * variant.batch * SEQUENCE,
        "seconds": seconds,
        "finalLoss": mean_of_last(losses, 0.05),
        "losses": [round(loss, 5) for loss in losses],
    }


def tokens_of(variant: Variant, tokens: int) -> int:
    """Tokens in the whole steps of a run over `tokens`."""
    return tokens // (variant.batch * SEQUENCE) * variant.batch * SEQUENCE


def mean_of_last(losses: list[float], share: float) -> float:
    """Mean over the last `share` of the steps."""
    count = max(1, int(len(losses) * share))
    return sum(losses[-count:]) / count


def smoothed(run: dict[str, Any], points: int = 80) -> list[tuple[float, float]]:
    """(tokens, mean loss) over equal spans of tokens, so that batch sizes compare."""
    losses, span = run["losses"], max(1, len(run["losses"]) // points)
    per_step = run["variant"]["batch"] * SEQUENCE
    return [
        ((begin + span) * per_step, sum(losses[begin : begin + span]) / span)
        for begin in range(0, len(losses) - span + 1, span)
    ]


def svg(runs: list[dict[str, Any]]) -> str:
    """A line per run: loss over tokens."""
    width, height, left, top = 760, 440, 60, 40
    curves = [smoothed(run) for run in runs]
    most = max(x for curve in curves for x, _ in curve)
    low = min(y for curve in curves for _, y in curve) - 0.05
    high = 4.0
    colours = ["#1f6f8b", "#c8553d", "#6a994e"]

    def place(x: float, y: float) -> str:
        across = left + x / most * (width - left - 20)
        down = top + (high - min(y, high)) / (high - low) * (height - top - 50)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="24" font-size="15">Training loss (nats per byte) over tokens</text>',
    ]
    tick = low + 0.05
    while tick < high:
        spot = place(0, tick).split(",")[1]
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{spot}" y2="{spot}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{spot}" font-size="11" text-anchor="end">{tick:.2f}</text>')
        tick += 0.4
    for share in (0, 0.25, 0.5, 0.75, 1.0):
        spot = place(share * most, low).split(",")[0]
        label = f"{share * most / 1e3:.0f}K"
        parts.append(f'<text x="{spot}" y="{height - 30}" font-size="11" text-anchor="middle">{label}</text>')
    for index, (run, curve, colour) in enumerate(zip(runs, curves, colours, strict=False)):
        line = " ".join(place(x, y) for x, y in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        text = f"{run['variant']['name']}: {run['finalLoss']:.3f} after {run['steps']} steps"
        down = top + 20 + 20 * index
        place_of = f'x="{width - 30}" y="{down}" font-size="13" text-anchor="end"'
        parts.append(f'<text {place_of} fill="{colour}">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, default=Path("data/python-stdlib"))
    parser.add_argument("--output", type=Path, default=RESULTS / f"convergence-{datetime.date.today()}")  # noqa: DTZ011
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = SampleStream.open(options.data, SEQUENCE, seed=1)
    record_file = options.output.with_suffix(".json")
    before = json.loads(record_file.read_text())["runs"] if record_file.exists() else []
    runs: list[dict[str, Any]] = []
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        for variant in VARIANTS:
            known = [
                run
                for run in before
                if run["variant"] == asdict(variant) and run["tokens"] == tokens_of(variant, options.tokens)
            ]
            runs.append(known[0] if known else train(variant, samples, options.tokens))
            print(variant.name, f"{runs[-1]['finalLoss']:.4f}", f"{runs[-1]['seconds']:.0f} s", flush=True)
            write(options.output, options.data.name, runs)
        distributed.destroy_process_group()


def write(output: Path, data: str, runs: list[dict[str, Any]]) -> None:
    """The record and its plot, of what has been run so far."""
    record = {
        "measured": f"on a CPU, one thread, torch {torch.__version__}, {platform.machine()}",
        "data": data,
        "sequenceLength": SEQUENCE,
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(record) + "\n")
    output.with_suffix(".svg").write_text(svg(runs))


if __name__ == "__main__":
    main()
