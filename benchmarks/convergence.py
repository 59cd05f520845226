"""Convergence: LAMB at 4x batch against AdamW, and parallel block + window against serial + full attention.

    nice -n 10 python benchmarks/convergence.py [--tokens 999424] [--data PREFIX]

Every family (optimizer, batch, block) gets three or more learning rates, a factor of two apart, around its
optimum, and every run sees the same tokens in the same order, each once, so the training loss is that of
unseen text. The result of a family is its best run. Writes `benchmarks/results/convergence-<date>.json` and
`.png`; runs that the record of the same day has are not repeated.

The paper's claims (MegaScale figure 10) are for 13B parameters and some 100e9 tokens; this is a model of some
0.1e6 on about 1e6 tokens, which only shows that the implementation is sound.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from report import machine
from torch import distributed

from megascale.data.ramp import BatchSizes
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
WINDOW = 32
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=64,
    attention_heads=4,
    kv_heads=4,
    ffn_hidden_size=256,
    # The usual 0.02 belongs to widths of some 768; it scales with one over the root of the width.
    init_std=0.07,
)
BATCH = 1
"""Sequences of a step at 1x. Four times as many have to be below the critical batch, beyond which fewer steps
cost loss whatever the optimizer: at 4 and 16 sequences a model of this size lost 0.05 over as many tokens."""
WARM_UP = 0.05
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Family:
    """What is compared, and the learning rates it is tried with."""

    name: str
    block: str
    window: int | None
    optimizer: str
    batch: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Variant:
    """One run."""

    family: str
    block: str
    window: int | None
    optimizer: str
    lr: float
    batch: int


_RATES = (0.006, 0.003, 0.012)
FAMILIES = (
    Family("AdamW, batch 1x", "parallel", WINDOW, "adamw", BATCH, (0.006, 0.003, 0.012, 0.0015)),
    Family("LAMB, batch 4x", "parallel", WINDOW, "lamb", 4 * BATCH, (0.01, 0.005, 0.02)),
    Family("AdamW, batch 4x", "parallel", WINDOW, "adamw", 4 * BATCH, _RATES),
    Family("AdamW, batch 4x, all keys", "parallel", None, "adamw", 4 * BATCH, _RATES),
    Family("AdamW, batch 4x, all keys, serial block", "serial", None, "adamw", 4 * BATCH, _RATES),
)


def variants() -> list[Variant]:
    """All runs; the likely learning rate of every family first, so that a run cut short is of use."""
    found = [
        (index, Variant(f.name, f.block, f.window, f.optimizer, rate, f.batch))
        for f in FAMILIES
        for index, rate in enumerate(f.rates)
    ]
    return [variant for _, variant in sorted(found, key=lambda pair: pair[0])]


def train(variant: Variant, samples: SampleStream, tokens: int) -> dict[str, Any]:
    """Train over `tokens` tokens; losses per step and the processor time they took."""
    layout = Layout(tensor=1, pipeline=1, data=1)
    groups = build_groups(layout)
    seed_all(1, groups.coordinates)
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
        batches=BatchSizes.constant(variant.batch),
        micro_batch=variant.batch,
        data_rank=0,
        data_size=1,
        device=cpu,
        vocab_size=shape.vocab_size,
    )
    steps = steps_of(variant, tokens)
    losses, begin = [], time.process_time()
    for step in range(1, steps + 1):
        stepper.forward_backward(feed.load(step))
        lr = learning_rate(
            step,
            name="cosine",
            peak=variant.lr,
            floor=0.0,
            warmup_steps=int(steps * WARM_UP),
            decay_steps=steps,
        )
        losses.append(stepper.update(lr, []).loss)
    return {
        "variant": asdict(variant),
        "parameters": parameter_count(shape),
        "flops": training_flops(shape, steps * variant.batch, SEQUENCE),
        "steps": steps,
        "tokens": steps * variant.batch * SEQUENCE,
        "cpuSeconds": round(time.process_time() - begin, 1),
        "finalLoss": mean_of_last(losses, 0.05),
        "losses": [round(loss, 4) for loss in losses],
    }


def steps_of(variant: Variant, tokens: int) -> int:
    """Whole steps of a run; the same tokens for every batch."""
    return tokens // (4 * BATCH * SEQUENCE) * 4 * BATCH // variant.batch


def mean_of_last(losses: list[float], share: float) -> float:
    """Mean over the last `share` of the steps."""
    count = max(1, int(len(losses) * share))
    return sum(losses[-count:]) / count


def best(runs: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The run of a family with the lowest loss."""
    own = [run for run in runs if run["variant"]["family"] == family]
    return min(own, key=lambda run: float(run["finalLoss"]), default=None)


def smoothed(run: dict[str, Any], points: int = 60) -> tuple[list[float], list[float]]:
    """Tokens and mean loss over equal spans of tokens, so that batch sizes compare."""
    losses, span = run["losses"], max(1, len(run["losses"]) // points)
    per_step = run["variant"]["batch"] * SEQUENCE
    begins = range(0, len(losses) - span + 1, span)
    return [(b + span) * per_step / 1e6 for b in begins], [sum(losses[b : b + span]) / span for b in begins]


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Left the best run of each family over tokens, right every run's final loss over its learning rate."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=(3, 2), layout="constrained")
    for family, colour in zip(FAMILIES, ("#1f6f8b", "#c8553d", "#9a8c98", "#6a994e", "#3d348b"), strict=True):
        run = best(runs, family.name)
        if run is None:
            continue
        label = f"{family.name}: {run['finalLoss']:.3f}, {run['steps']:,} steps, lr {run['variant']['lr']:g}"
        left.plot(*smoothed(run), color=colour, label=label)
        own = sorted(
            (r["variant"]["lr"], r["finalLoss"]) for r in runs if r["variant"]["family"] == family.name
        )
        right.plot(*zip(*own, strict=True), "o-", color=colour)
    left.set(
        xlabel="tokens, million",
        ylabel="training loss, nats per byte",
        title="Best run of each",
        ylim=(None, 3.2),
    )
    left.legend(fontsize=8, loc="upper right")
    right.set(xscale="log", xlabel="highest learning rate", title="Loss over the last 5% of the tokens")
    rates = sorted({run["variant"]["lr"] for run in runs})
    right.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(output: Path, data: str, runs: list[dict[str, Any]]) -> None:
    """The record and its plot, of what has been run so far."""
    found = {family.name: best(runs, family.name) for family in FAMILIES}
    record = {
        "measured": f"one thread of {machine()}",
        "command": " ".join(["python", *sys.argv]),
        "data": data,
        "sequenceLength": SEQUENCE,
        "shape": asdict(SHAPE),
        "best": {name: [run["finalLoss"], run["variant"]["lr"]] for name, run in found.items() if run},
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(record) + "\n")
    plot(runs, output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=999_424)
    parser.add_argument("--data", type=Path, default=Path("data/python-stdlib"))
    parser.add_argument("--output", type=Path, default=RESULTS / f"convergence-{datetime.date.today()}")  # noqa: DTZ011
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = SampleStream.open(options.data, SEQUENCE, seed=1)
    record_file = options.output.with_suffix(".json")
    runs: list[dict[str, Any]] = json.loads(record_file.read_text())["runs"] if record_file.exists() else []
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        for variant in variants():
            steps = steps_of(variant, options.tokens)
            if any(run["variant"] == asdict(variant) and run["steps"] == steps for run in runs):
                continue
            runs.append(train(variant, samples, options.tokens))
            run = runs[-1]
            print(
                f"{variant.family}, lr {variant.lr:g}: {run['finalLoss']:.4f}, {run['cpuSeconds']} s",
                flush=True,
            )
            write(options.output, options.data.name, runs)
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
