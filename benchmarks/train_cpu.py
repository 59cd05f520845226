"""Training throughput on one CPU thread: the engine against plain torch, as a share of the matmul ceiling.

    nice -n 19 python benchmarks/train_cpu.py [--repeats 9]

The `tiny` shape of the quickstart, fp32, whole steps without data loading, in processor time. It shows the
cost of the engine's Python code and the effect of the window without a fused attention kernel, and predicts
nothing about GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from report import write_result
from train_gpu import STAGES, Case, Stage, ours, plain, staged, world

from megascale.engine.device import open_device
from megascale.job.megatron import Model
from megascale.model.flops import training_flops
from megascale.model.shape import ModelShape

MATMUL, SQUARE = "matmul", 1024
RIVAL = "plain torch, eager"
SEQUENCE, MICRO_BATCH, MICRO_BATCHES = 256, 4, 2


def rounds(todo: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor time of each call; all in turn, so that a slow moment of the machine meets all."""
    times: dict[str, list[float]] = {name: [] for name in todo}
    for index in range(repeats + 1):
        for name, call in todo.items():
            begin = time.process_time()
            call()
            if index:
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    shape = ModelShape.of(Model.model_validate({"preset": "tiny", "block": "serial", "windowPattern": "L"}))
    case = Case("tiny", shape, tensor=1, sequence=SEQUENCE, window=64, micro_batch=MICRO_BATCH)
    stages = [*STAGES[:3], Stage("+ LAMB", "parallel", windowed=True, optimizer="lamb")]
    shapes = {stage.name: staged(case, stage) for stage in stages} | {RIVAL: shape}
    square = torch.ones(SQUARE, SQUARE)
    todo: dict[str, Callable[[], object]] = {MATMUL: lambda: square @ square}
    with open_device(0) as device, world(case, device):
        todo |= {stage.name: ours(case, stage, device, "eager") for stage in stages}
        todo[RIVAL] = plain(case, device, "eager")
        seconds = rounds(todo, repeats)
    peak = 2 * SQUARE**3 / seconds[MATMUL]
    tokens = MICRO_BATCH * MICRO_BATCHES * SEQUENCE
    table = "\n".join(
        f"| {name} | {tokens / seconds[name]:,.0f}"
        f" | {training_flops(own, MICRO_BATCH * MICRO_BATCHES, SEQUENCE) / seconds[name] / peak:.1%}"
        f" | {seconds[RIVAL] / seconds[name]:.2f} |"
        for name, own in shapes.items()
    )
    size = f"{MICRO_BATCHES} x {MICRO_BATCH} x {SEQUENCE} tokens"
    body = f"""One thread, matmul {peak / 1e9:.1f} GFLOP/s in fp32; steps of {size}, processor time.

| step | tokens/s | of matmul | x {RIVAL} |
|---|---|---|---|
{table}"""
    print(body)
    write_result("train_cpu", body)


if __name__ == "__main__":
    main()
