"""Training throughput on one GPU: the paper's ablation, against plain torch and the machine's own ceilings.

    python benchmarks/train_gpu.py          # one call, at most 8 minutes, needs one NVIDIA GPU
    python benchmarks/train_gpu.py --smoke  # the same code with toy shapes, on a CPU too, to see that it runs

For layers of 7B and 13B models and one tensor-parallel shard (1/8) of 175B, bf16, it measures whole steps
(embedding, layers, loss, gradient norm, optimizer) of: serial block + full attention -> parallel block ->
window -> compiled layers -> LAMB at three times the batch; and of plain torch (compiled, SDPA, fused AdamW)
with the serial shape. Depth is reduced so that a model fits; the shard runs the engine as rank 0 of 8 with
collectives that return at once, so its figures exclude communication. MFU counts attended pairs only
(docs/model.md), against 989 TFLOP/s on H100 and H200; the goal is 60%, the floor 80% of the matmul ceiling
measured in the run. Exit code 2 if there is no GPU. Not run on a GPU yet: no dated result is checked in.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from plain_gpt import PlainGpt
from report import write_result
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megascale.engine.compiling import compile_chunks
from megascale.engine.device import Device, open_device
from megascale.engine.feed import MicroBatch
from megascale.engine.groups import build_groups
from megascale.engine.peak import rated_flops
from megascale.engine.rng import seed_all
from megascale.engine.state import build_engine
from megascale.engine.stepper import Stepper
from megascale.job.megatron import Optimizer
from megascale.model.flops import training_flops
from megascale.model.kernels import choose_backend
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape

BUDGET_S = 8 * 60
RESERVE_S = 45
GOAL_MFU, FLOOR_OF_MATMUL = 0.60, 0.80
RIVAL = "plain torch, compiled"


@dataclass(frozen=True)
class Case:
    """A model whose layers are measured: `shape` is the whole model's, cut in depth, over `tensor` ranks."""

    name: str
    shape: ModelShape
    tensor: int
    sequence: int
    window: int
    micro_batch: int


@dataclass(frozen=True)
class Stage:
    """One step of the ablation; each keeps what the one before brought."""

    name: str
    block: str
    windowed: bool = False
    compiled: bool = False
    optimizer: str = "adamw"
    micro_batches: int = 2


def gpt(layers: int, hidden: int, heads: int, **choices: Any) -> ModelShape:  # noqa: ANN401 - fields of a shape
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        attention_heads=heads,
        kv_heads=heads,
        ffn_hidden_size=4 * hidden,
        block="serial",
        **choices,
    )


CASES = [
    Case("7B", gpt(8, 4096, 32, vocab_size=64_000), tensor=1, sequence=2048, window=512, micro_batch=4),
    Case("13B", gpt(6, 5120, 40, vocab_size=64_000), tensor=1, sequence=2048, window=512, micro_batch=4),
    Case(
        "175B/8", gpt(4, 12_288, 128, vocab_size=64_000), tensor=8, sequence=2048, window=512, micro_batch=2
    ),
]
TOYS = [
    Case("toy", gpt(2, 32, 4), tensor=1, sequence=16, window=4, micro_batch=2),
    Case("toy/2", gpt(2, 32, 4), tensor=2, sequence=16, window=4, micro_batch=2),
]
STAGES = [
    Stage("serial + full attention", "serial"),
    Stage("+ parallel block", "parallel"),
    Stage("+ window", "parallel", windowed=True),
    Stage("+ compiled layers", "parallel", windowed=True, compiled=True),
    Stage("+ LAMB, batch x3", "parallel", windowed=True, compiled=True, optimizer="lamb", micro_batches=6),
]


class Clock:
    """Seconds per call, by CUDA events on a GPU; on a CPU, where one thread works, its processor time."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._repeats = repeats

    def seconds(self, call: Callable[[], object], warm_up: int = 2) -> float:
        for _ in range(warm_up):
            call()
        if not self._on_gpu:
            begin = time.process_time()
            for _ in range(self._repeats):
                call()
            return (time.process_time() - begin) / self._repeats
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self._repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        times = sorted(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks))
        return float(times[len(times) // 2])


def ceilings(device: torch.device, clock: Clock, *, size: int) -> dict[str, float]:
    """What this machine reaches by itself: square bf16 product in FLOP/s, copy in bytes/s, both ways."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul = clock.seconds(lambda: a @ b)
    source = torch.empty(size * size, device=device)
    target = torch.empty_like(source)
    copy = clock.seconds(lambda: target.copy_(source))
    return {"matmulFlops": 2 * size**3 / matmul, "copyBytes": 8 * size * size / copy}


def micro_batches(case: Case, count: int, device: torch.device) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        shape = (case.micro_batch, case.sequence + 1)
        rows = torch.randint(0, case.shape.vocab_size, shape, generator=generator).to(device)
        made.append(MicroBatch(rows[:, :-1], rows[:, 1:]))
    return made


@contextlib.contextmanager
def world(case: Case, device: Device) -> Iterator[None]:
    """A process group of its own for rank 0; with several tensor ranks one whose collectives do nothing."""
    if case.tensor == 1:
        store = distributed.HashStore()
        distributed.init_process_group(device.backend, store=store, rank=0, world_size=1)
    else:
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.tensor)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def ours(case: Case, stage: Stage, device: Device, compiler: str) -> Callable[[], object]:
    """A callable that runs one whole step of the engine."""
    layout = Layout(tensor=case.tensor, pipeline=1, data=1)
    groups = build_groups(layout)
    seed_all(1, groups.coordinates)
    shape = staged(case, stage)
    dtype = device.dtype("auto")
    settings = Optimizer(name=stage.optimizer)  # type: ignore[arg-type]
    # Full attention is torch's causal kernel: what both sides of the comparison have without a window.
    asked = "auto" if stage.windowed else "reference"
    state = build_engine(
        shape,
        settings,
        groups,
        sequence_length=case.sequence,
        device=device.torch_device,
        dtype=dtype,
        seed=1,
        backend=choose_backend(asked, device.torch_device, dtype).backend,  # type: ignore[arg-type]
    )
    if stage.compiled:
        compile_chunks(state.chunks, compiler)
    stepper = Stepper(
        state,
        micro_batch=case.micro_batch,
        sequence_length=case.sequence,
        clip_grad=1.0,
        on_forward=lambda _: None,
        on_backward=lambda _: None,
    )
    batches = micro_batches(case, stage.micro_batches, device.torch_device)

    def step() -> object:
        stepper.forward_backward(batches)
        result = stepper.update(1e-4, [])
        assert result.applied, f"step left out: {result}"
        return result

    return step


def staged(case: Case, stage: Stage) -> ModelShape:
    return replace(case.shape, block=stage.block, window=case.window if stage.windowed else None)  # type: ignore[arg-type]


def plain(case: Case, device: Device, compiler: str) -> Callable[[], object]:
    """A callable that runs one whole step of plain torch: same serial shape, compiled, SDPA, fused AdamW."""
    torch.manual_seed(1)
    model = PlainGpt(case.shape).to(device.torch_device)
    run = torch.compile(model, backend=compiler)
    on_gpu = device.torch_device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=on_gpu)
    batches = micro_batches(case, STAGES[0].micro_batches, device.torch_device)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with torch.autocast(device.torch_device.type, torch.bfloat16, enabled=on_gpu):
                loss = run(batch.tokens, batch.labels)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def figures(case: Case, shape: ModelShape, count: int, seconds: float, peak: float) -> dict[str, float]:
    """Throughput of this GPU; FLOPs of its share of the model, attended pairs only."""
    sequences = case.micro_batch * count
    flops = training_flops(shape, sequences, case.sequence) / case.tensor / seconds
    found = {
        "stepSeconds": seconds,
        "tokensPerSecond": sequences * case.sequence / seconds,
        "flops": flops,
        "flopsWithoutCountingTheWindow": training_flops(shape, sequences, case.sequence, "causal")
        / case.tensor
        / seconds,
    }
    return found | ({"mfu": flops / peak} if peak else {})


def release() -> None:
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Run:
    """One thing to measure: how to make a callable that runs a step."""

    name: str
    shape: ModelShape
    micro_batches: int
    make: Callable[[], Callable[[], object]]


def runs_of(case: Case, device: Device, compiler: str) -> Iterator[Run]:
    for stage in STAGES:
        make = functools.partial(ours, case, stage, device, compiler)
        yield Run(stage.name, staged(case, stage), stage.micro_batches, make)
    if case.tensor == 1:
        make = functools.partial(plain, case, device, compiler)
        yield Run(RIVAL, case.shape, STAGES[0].micro_batches, make)


def measure(
    case: Case, device: Device, clock: Clock, *, compiler: str, left: Callable[[], float]
) -> list[dict[str, Any]]:
    """Every stage of a case and plain torch; a stage that fails or finds no time left says so."""
    peak = rated_flops(device.name)
    rows: list[dict[str, Any]] = []
    with world(case, device):
        for run in runs_of(case, device, compiler):
            row: dict[str, Any] = {"case": case.name, "stage": run.name}
            if left() < RESERVE_S:
                row["skipped"] = "no time left"
            else:
                try:
                    seconds = clock.seconds(run.make())
                except (RuntimeError, AssertionError) as error:
                    row["failed"] = (str(error).splitlines() or [type(error).__name__])[0][:300]
                else:
                    row |= figures(case, run.shape, run.micro_batches, seconds, peak)
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
            release()
    return rows


def line(row: dict[str, Any]) -> str:
    head = f"{row['case']:8} {row['stage']:26}"
    if "stepSeconds" not in row:
        return f"{head} {row.get('failed') or row.get('skipped')}"
    mfu = f"{row['mfu']:6.1%}" if "mfu" in row else "   n/a"
    return f"{head} {row['tokensPerSecond']:12,.0f} tokens/s {row['flops'] / 1e12:8.2f} TFLOP/s  MFU {mfu}"


def verdict(case: str, rows: list[dict[str, Any]], matmul: float) -> str:
    """What the stages of a case gained one after the other, and the best against rival, goal and floor."""
    measured = [row for row in rows if row["case"] == case and "flops" in row]
    stages = [row for row in measured if row["stage"] != RIVAL]
    if not stages:
        return f"{case}: nothing was measured"
    gains = [
        f"{later['stage']} x{later['tokensPerSecond'] / earlier['tokensPerSecond']:.2f}"
        for earlier, later in itertools.pairwise(stages)
    ]
    best = max(stages, key=lambda row: float(row["flops"]))
    share = best["flops"] / matmul
    parts = [
        ", ".join(gains),
        f"best is {best['stage']!r} at {share:.1%} of the matmul ceiling (floor {FLOOR_OF_MATMUL:.0%})",
    ]
    if "mfu" in best:
        parts.append(f"MFU {best['mfu']:.1%} (goal {GOAL_MFU:.0%})")
    parts += [
        f"{best['tokensPerSecond'] / row['tokensPerSecond']:.2f} x the tokens/s of {RIVAL}"
        for row in measured
        if row["stage"] == RIVAL
    ]
    return f"{case}: {'; '.join(parts)}"


def report(device: Device, limits: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """All figures as text."""
    matmul = limits["matmulFlops"]
    ceiling = f"matmul {matmul / 1e12:.2f} TFLOP/s (bf16), copy {limits['copyBytes'] / 1e9:.1f} GB/s"
    table = "\n".join(line(row) for row in rows)
    verdicts = "\n".join(
        f"- {verdict(case, rows, matmul)}" for case in dict.fromkeys(row["case"] for row in rows)
    )
    formula = "FLOPs per step = 6 x tokens x matmul parameters + 12 x hidden x attended pairs (docs/model.md)"
    return f"{device.name}: {ceiling}\n\n```\n{table}\n```\n\n{verdicts}\n\n{formula}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="Toy shapes; nothing is written.")
    smoke = parser.parse_args().smoke
    if not smoke and not torch.cuda.is_available():
        print(
            "no GPU here: nothing was measured; --smoke runs the same code with toy shapes", file=sys.stderr
        )
        return 2
    begin = time.monotonic()
    with open_device(0) as device:
        clock = Clock(device.torch_device, repeats=2 if smoke else 8)
        limits = ceilings(device.torch_device, clock, size=64 if smoke else 8192)
        rows = []
        for case in TOYS if smoke else CASES:
            rows += measure(
                case,
                device,
                clock,
                compiler="eager" if smoke else "inductor",
                left=lambda: BUDGET_S - (time.monotonic() - begin),
            )
    body = report(device, limits, rows)
    print(body)
    if not smoke:
        write_result("train_gpu", body)
    return 0 if all("flops" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
