"""Convergence: LAMB at 4x batch against AdamW, and parallel block + window against serial + full attention.

    nice -n 10 python benchmarks/convergence.py [--seeds 1,2,3] [--rates 5] [--tokens 999424] [--data X]

Every family (optimizer, batch, block) gets the same number of learning rates, a factor of two apart, centred
on one that was good before, and every rate gets every seed. A seed decides the initial weights and the order
of the samples; runs with one seed see the same tokens in the same order, each once, so the training loss is
that of unseen text. The result of a family is the rate with the lowest mean over the seeds, with the loss of
every seed; a best rate at the edge of the sweep is marked, because a better one may lie beyond. Families are
compared by seed. Writes `benchmarks/results/convergence-<date>.json` and `.png`; runs that the record of the
same day has are not repeated.

The paper's claims (MegaScale figure 10) are for 13B parameters and some 100e9 tokens; this is a model of some
0.1e6 on about 1e6 tokens, which only shows that the implementation is sound.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Sequence
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
    """What is compared, and the learning rate in the middle of its sweep."""

    name: str
    block: str
    window: int | None
    optimizer: str
    batch: int
    rate: float


@dataclass(frozen=True)
class Variant:
    """One run."""

    family: str
    block: str
    window: int | None
    optimizer: str
    lr: float
    batch: int
    seed: int


FAMILIES = (
    Family("AdamW, batch 1x", "parallel", WINDOW, "adamw", BATCH, 0.006),
    Family("LAMB, batch 4x", "parallel", WINDOW, "lamb", 4 * BATCH, 0.01),
    Family("AdamW, batch 4x", "parallel", WINDOW, "adamw", 4 * BATCH, 0.006),
    Family("AdamW, batch 4x, all keys", "parallel", None, "adamw", 4 * BATCH, 0.006),
    Family("AdamW, batch 4x, all keys, serial block", "serial", None, "adamw", 4 * BATCH, 0.006),
)
REFERENCE = FAMILIES[0].name
"""Every other family is compared with this one."""


def variants(seeds: Sequence[int], rates: int) -> list[Variant]:
    """All runs: seed by seed, from the middle of the sweep outwards, so that a run cut short is of use."""
    exponents = sorted(range(-(rates // 2), (rates + 1) // 2), key=abs)
    return [
        Variant(f.name, f.block, f.window, f.optimizer, f.rate * 2.0**exponent, f.batch, seed)
        for seed in seeds
        for exponent in exponents
        for f in FAMILIES
    ]


def train(variant: Variant, samples: SampleStream, tokens: int) -> dict[str, Any]:
    """Train over `tokens` tokens; losses per step and the processor time they took."""
    layout = Layout(tensor=1, pipeline=1, data=1)
    groups = build_groups(layout)
    seed_all(variant.seed, groups.coordinates)
    shape = replace(SHAPE, block=variant.block, window=variant.window)  # type: ignore[arg-type]
    settings = Optimizer(name=variant.optimizer, lr=variant.lr, weight_decay=0.1)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    state = build_engine(
        shape, settings, groups, sequence_length=SEQUENCE, device=cpu, dtype=torch.float32, seed=variant.seed
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


def by_rate(runs: list[dict[str, Any]], family: str) -> dict[float, dict[int, float]]:
    """rate -> seed -> final loss of a family, rates ascending."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        if run["variant"]["family"] == family:
            rate, seed = run["variant"]["lr"], run["variant"]["seed"]
            found.setdefault(rate, {})[seed] = float(run["finalLoss"])
    return dict(sorted(found.items()))


def best(runs: list[dict[str, Any]], family: str) -> dict[str, Any] | None:
    """The rate of a family with the lowest mean loss among those with the most seeds; None before any run."""
    rates = by_rate(runs, family)
    if not rates:
        return None
    most = max(map(len, rates.values()))
    full = {rate: losses for rate, losses in rates.items() if len(losses) == most}
    rate = min(full, key=lambda lr: statistics.fmean(full[lr].values()))
    losses = full[rate]
    return {
        "lr": rate,
        "mean": statistics.fmean(losses.values()),
        "standardDeviation": statistics.stdev(losses.values()) if len(losses) > 1 else None,
        "lossBySeed": losses,
        "atEdgeOfSweep": len(rates) > 1 and rate in (min(rates), max(rates)),
        "meanByRate": {str(lr): statistics.fmean(found.values()) for lr, found in rates.items()},
    }


def against_reference(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Loss of each family less that of the reference, seed by seed, both at their best rate."""
    if REFERENCE not in found:
        return {}
    base = found[REFERENCE]["lossBySeed"]
    compared = {}
    for family, result in found.items():
        both = {seed: loss - base[seed] for seed, loss in result["lossBySeed"].items() if seed in base}
        if family != REFERENCE and both:
            compared[family] = {
                "bySeed": both,
                "mean": statistics.fmean(both.values()),
                "standardDeviation": statistics.stdev(both.values()) if len(both) > 1 else None,
            }
    return compared


def report(found: dict[str, dict[str, Any]]) -> list[str]:
    """The results in words, one line per family."""
    compared = against_reference(found)
    lines = []
    for family, result in found.items():
        losses = " ".join(f"{loss:.3f}" for loss in result["lossBySeed"].values())
        text = f"{family}: {result['mean']:.3f} nats per byte at lr {result['lr']:g} (seeds: {losses})"
        if family in compared:
            mean, deviation = compared[family]["mean"], compared[family]["standardDeviation"]
            spread = "" if deviation is None else f", standard deviation over seeds {deviation:.3f}"
            text += f"; {mean:+.3f} against {REFERENCE}{spread}"
        lines.append(f"{text}; at the edge of its sweep" if result["atEdgeOfSweep"] else text)
    return lines


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
        result = best(runs, family.name)
        if result is None:
            continue
        own = [run for run in runs if run["variant"]["family"] == family.name]
        shown = next(run for run in own if run["variant"]["lr"] == result["lr"])
        label = f"{family.name}: {result['mean']:.3f}, {shown['steps']:,} steps, lr {result['lr']:g}"
        left.plot(*smoothed(shown), color=colour, label=label)
        rates = by_rate(runs, family.name)
        means = [statistics.fmean(losses.values()) for losses in rates.values()]
        lowest = [mean - min(losses.values()) for mean, losses in zip(means, rates.values(), strict=True)]
        highest = [max(losses.values()) - mean for mean, losses in zip(means, rates.values(), strict=True)]
        right.errorbar(list(rates), means, yerr=[lowest, highest], fmt="o-", capsize=3, color=colour)
    left.set(
        xlabel="tokens, million",
        ylabel="training loss, nats per byte",
        title="Best rate of each, one seed",
        ylim=(None, 3.2),
    )
    left.legend(fontsize=8, loc="upper right")
    right.set(
        xscale="log", xlabel="highest learning rate", title="Last 5% of the tokens, mean and range of seeds"
    )
    ticks = sorted({run["variant"]["lr"] for run in runs})
    right.set_xticks(ticks, [f"{rate:g}" for rate in ticks], rotation=45)
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def results(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best rate of each family that has run."""
    found = {family.name: best(runs, family.name) for family in FAMILIES}
    return {name: result for name, result in found.items() if result is not None}


def write(output: Path, data: str, runs: list[dict[str, Any]]) -> None:
    """The record and its plot, of what has been run so far."""
    found = results(runs)
    record = {
        "measured": f"one thread of {machine()}",
        "command": " ".join(["python", *sys.argv]),
        "data": data,
        "sequenceLength": SEQUENCE,
        "shape": asdict(SHAPE),
        "best": found,
        "againstReference": against_reference(found),
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
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3]
    )
    parser.add_argument("--rates", type=int, default=5, help="learning rates of each family, odd")
    parser.add_argument("--data", type=Path, default=Path("data/python-stdlib"))
    parser.add_argument("--output", type=Path, default=RESULTS / f"convergence-{datetime.date.today()}")  # noqa: DTZ011
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rates < 1 or options.rates % 2 == 0:
        parser.error(f"--rates is {options.rates}, expected an odd number, so that the sweep has a middle")
    record_file = options.output.with_suffix(".json")
    runs: list[dict[str, Any]] = json.loads(record_file.read_text())["runs"] if record_file.exists() else []
    if any("seed" not in run["variant"] for run in runs):
        parser.error(f"{record_file} was written before runs had seeds; give another --output")
    with cpu_bridge():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        for variant in variants(options.seeds, options.rates):
            steps = steps_of(variant, options.tokens)
            if any(run["variant"] == asdict(variant) and run["steps"] == steps for run in runs):
                continue
            samples = SampleStream.open(options.data, SEQUENCE, seed=variant.seed)
            runs.append(train(variant, samples, options.tokens))
            run = runs[-1]
            print(
                f"{variant.family}, lr {variant.lr:g}, seed {variant.seed}:"
                f" {run['finalLoss']:.4f}, {run['cpuSeconds']} s",
                flush=True,
            )
            write(options.output, options.data.name, runs)
        distributed.destroy_process_group()
    print(*report(results(runs)), sep="\n")


if __name__ == "__main__":
    main()
