"""Training throughput on one CPU thread: the engine against plain torch, as a share of the matmul ceiling.

    nice -n 19 python benchmarks/train_cpu.py [--repeats 5]

The `tiny` shape of the quickstart, fp32, whole steps (data left out). It shows what the engine's own Python
costs and what the window saves where attention is not a fused kernel; it says nothing of GPUs.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from train_gpu import STAGES, Case, Clock, Stage, ours, plain, staged, world

from megascale.engine.device import open_device
from megascale.engine.peak import measure_flops
from megascale.job.megatron import Model
from megascale.model.flops import training_flops
from megascale.model.shape import ModelShape

RESULTS = Path(__file__).parent / "results"
SEQUENCE, MICRO_BATCH, MICRO_BATCHES = 256, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = ModelShape.of(Model.model_validate({"preset": "tiny", "block": "serial", "windowPattern": "L"}))
    case = Case("tiny", shape, tensor=1, sequence=SEQUENCE, window=64, micro_batch=MICRO_BATCH)
    lamb = Stage("+ LAMB", "parallel", windowed=True, optimizer="lamb")
    peak = measure_flops(0.5)
    print(f"one thread, matmul {peak / 1e9:.1f} GFLOP/s in fp32")
    rows = []
    with open_device(0) as device, world(case, device):
        clock = Clock(device.place, options.repeats)
        todo = [
            (stage.name, staged(case, stage), ours(case, stage, device, "eager"))
            for stage in (*STAGES[:3], lamb)
        ]
        todo.append(("plain torch, eager", shape, plain(case, device, "eager")))
        for name, measured, step in todo:
            seconds = clock.seconds(step, warm_up=1)
            flops = training_flops(measured, MICRO_BATCH * MICRO_BATCHES, SEQUENCE) / seconds
            tokens = MICRO_BATCH * MICRO_BATCHES * SEQUENCE / seconds
            rows.append(
                {
                    "stage": name,
                    "stepSeconds": seconds,
                    "tokensPerSecond": tokens,
                    "ofMatmulPeak": flops / peak,
                }
            )
            print(f"{name:40} {tokens:9,.0f} tokens/s  {flops / peak:6.1%} of matmul", flush=True)
    today = datetime.date.today()  # noqa: DTZ011
    record = {"date": str(today), "threads": 1, "torch": torch.__version__, "matmulFlops": peak, "rows": rows}
    output = options.output or RESULTS / f"train-cpu-{today}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
