"""Plain torch DistributedDataParallel, as torchrun starts it; it knows nothing of MegaScale.

A small network learns y = sin(3x) from batches that depend on the step and the rank only. Every SAVE_EVERY
steps rank 0 writes model, optimizer and step to one file, and a restarted script goes on from there.

    torchrun --nproc-per-node 2 examples/ddp/train.py --steps 200
    megascale run examples/ddp.yaml
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

SAVE_EVERY = 20


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (64, 1)."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.rand(64, 1, generator=generator) * 2 - 1
    return x, torch.sin(3 * x)


def save(path: Path, state: dict[str, object]) -> None:
    """Replace the checkpoint so that a kill in between leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--checkpoint", type=Path, default=Path("ddp-checkpoint.pt"))
    arguments.add_argument("--step-seconds", type=float, default=0.0, help="make each step take this long")
    options = arguments.parse_args()

    distributed.init_process_group("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    done = 0
    if options.checkpoint.exists():
        state = torch.load(options.checkpoint, weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        print(f"rank {rank} of {world} goes on from step {done}", flush=True)

    for step in range(done + 1, options.steps + 1):
        x, y = batch(step, rank)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(options.step_seconds)
        if rank == 0 and step % 10 == 0:
            print(f"step {step} loss {loss.item():.6f}", flush=True)
        if rank == 0 and step % SAVE_EVERY == 0:
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save(options.checkpoint, state)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
