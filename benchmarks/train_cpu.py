"""Training throughput on one CPU thread: the engine against plain torch, as a share of the matmul ceiling.

    nice -n 19 python benchmarks/train_cpu.py [--repeats 5]

The `tiny` shape of the quickstart, fp32, whole steps (data left out), in processor time. It shows what the
engine's own Python costs and what the window saves where attention is not a fused kernel; it says nothing of
GPUs.
"""

from __future__ import annotations

import argparse

import torch
from report import write_result
from train_gpu import STAGES, Case, Clock, Stage, ours, plain, staged, world

from megascale.engine.device import open_device
from megascale.engine.peak import measure_flops
from megascale.job.megatron import Model
from megascale.model.flops import training_flops
from megascale.model.shape import ModelShape

RIVAL = "plain torch, eager"
SEQUENCE, MICRO_BATCH, MICRO_BATCHES = 256, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = ModelShape.of(Model.model_validate({"preset": "tiny", "block": "serial", "windowPattern": "L"}))
    case = Case("tiny", shape, tensor=1, sequence=SEQUENCE, window=64, micro_batch=MICRO_BATCH)
    lamb = Stage("+ LAMB", "parallel", windowed=True, optimizer="lamb")
    peak = measure_flops(0.5)
    rows: list[tuple[str, float, float]] = []
    with open_device(0) as device, world(case, device):
        clock = Clock(device.place, options.repeats)
        todo = [
            (stage.name, staged(case, stage), ours(case, stage, device, "eager"))
            for stage in (*STAGES[:3], lamb)
        ]
        todo.append((RIVAL, shape, plain(case, device, "eager")))
        for name, measured, step in todo:
            seconds = clock.seconds(step, warm_up=1)
            flops = training_flops(measured, MICRO_BATCH * MICRO_BATCHES, SEQUENCE) / seconds
            rows.append((name, MICRO_BATCH * MICRO_BATCHES * SEQUENCE / seconds, flops / peak))
    rival = rows[-1][1]
    table = "\n".join(
        f"| {name} | {tokens:,.0f} | {share:.1%} | {tokens / rival:.2f} |" for name, tokens, share in rows
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
