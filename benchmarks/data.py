"""Reading training data on one node: one loader for all ranks, against a torch DataLoader per rank.

    python benchmarks/data.py --ranks 8 --steps 60

Ranks are processes forked from one that has imported torch, as in a job; all read the same steps: their own
micro-batches of one global batch. `shared` is megascale's node loader, `direct` is every rank mapping the
data itself, `DataLoader` is torch's with one worker per rank over the same mapping (without a worker it reads
no step ahead). A checksum over all tokens proves that all three read the same. Reported: tokens per second of
the node while the ranks do nothing else, memory of all processes (proportional set size, file pages of the
data left out), and the time a rank waits for a step when it does something else between steps.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import torch
from report import write_result
from torch.utils.data import DataLoader, Dataset

from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.node_loader import NodeBatch, NodeSamples, start_loader
from megascale.data.ramp import BatchSizes
from megascale.data.reading import Samples
from megascale.data.samples import SampleStream

SEQUENCE: Final = 2048
MICRO_BATCH: Final = 4
MICRO_BATCHES: Final = 4
TOKENS: Final = 1 << 26
DOCUMENT: Final = 1000
COMPUTE_S: Final = 0.05
WAITED_STEPS: Final = 20


class Rows(Dataset[torch.Tensor]):
    """Micro-batches of one rank, for DataLoader."""

    def __init__(self, samples: Samples, firsts: list[int]) -> None:
        self._samples, self._firsts = samples, firsts

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._samples.batch(self._firsts[index], MICRO_BATCH))


def write_data(prefix: Path) -> None:
    """Random tokens in documents of 1,000."""
    rng = np.random.default_rng(0)
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype("<u2")) as writer:
        for _ in range(TOKENS // DOCUMENT):
            writer.append(rng.integers(0, 50_000, DOCUMENT).astype("<u2"))
            writer.end_document()


@dataclass(frozen=True)
class Setup:
    """What all ranks of a measurement share."""

    way: str
    ranks: int
    steps: int
    folder: Path
    barrier: Barrier
    results: Queue[tuple[int, float, float, int]]


def rank_main(setup: Setup, rank: int) -> None:
    """One rank: read all its micro-batches as fast as they come, then some with a pause after each step."""
    torch.set_num_threads(1)
    ranks, steps, barrier = setup.ranks, setup.steps, setup.barrier
    sizes = BatchSizes.constant(MICRO_BATCH * MICRO_BATCHES * ranks)
    batch = NodeBatch(SEQUENCE, sizes, MICRO_BATCH, tuple(range(ranks)), ranks, with_documents=False)
    firsts = [
        first
        for step in range(1, steps + WAITED_STEPS + 1)
        for _, first in batch.pieces(step)
        if first // MICRO_BATCH % ranks == rank
    ]
    source = _open(setup, rank, batch)
    if setup.way == "DataLoader":
        assert isinstance(source, SampleStream)
        ahead = MICRO_BATCHES
        loader = DataLoader(Rows(source, firsts), batch_size=None, num_workers=1, prefetch_factor=ahead)
        rows: Iterator[torch.Tensor] = iter(loader)
    else:
        rows = (torch.from_numpy(source.batch(first, MICRO_BATCH)) for first in firsts)
    checksum = int(next(rows).sum())
    barrier.wait()
    began = time.monotonic()
    for _ in range(steps * MICRO_BATCHES - 1):
        checksum += int(next(rows).sum())
    barrier.wait()
    seconds = time.monotonic() - began
    barrier.wait()  # memory is read here
    waited = 0.0
    for _ in range(WAITED_STEPS):
        time.sleep(COMPUTE_S)
        began = time.monotonic()
        for _ in range(MICRO_BATCHES):
            checksum += int(next(rows).sum())
        waited += time.monotonic() - began
    setup.results.put((rank, seconds, waited / WAITED_STEPS, checksum))
    barrier.wait()


def _open(setup: Setup, rank: int, batch: NodeBatch) -> Samples:
    """Where the rank's samples come from."""
    if setup.way == "shared":
        if rank == 0:
            stream = SampleStream.open(setup.folder / "x", SEQUENCE, seed=1)
            start_loader(stream, batch, setup.folder / "node", setup.ranks, first_step=1)
        setup.barrier.wait()
        return NodeSamples(batch, setup.folder / "node")
    stream = SampleStream.open(setup.folder / "x", SEQUENCE, seed=1)
    setup.barrier.wait()
    return stream


def memory_bytes(pid: int) -> tuple[int, int]:
    """(private and shared anonymous memory of all descendants, number of processes)."""
    processes = psutil.Process(pid).children(recursive=True)
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        total += (fields["Pss_Anon"] + fields["Pss_Shmem"]) << 10
    return total, len(processes)


def measure(way: str, ranks: int, steps: int, folder: Path) -> dict[str, float]:
    """One way of reading."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(ranks + 1), context.Queue()
    setup = Setup(way, ranks, steps, folder, barrier, results)
    processes = [context.Process(target=rank_main, args=(setup, rank)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for _ in range(3):
        barrier.wait(timeout=120)
    memory, count = memory_bytes(multiprocessing.current_process().pid or 0)
    barrier.wait(timeout=120)
    found = sorted(results.get(timeout=120) for _ in processes)
    barrier.wait(timeout=120)
    for process in processes:
        process.join()
    tokens = (steps * MICRO_BATCHES - 1) * MICRO_BATCH * SEQUENCE * ranks
    return {
        "tokens_per_s": tokens / max(seconds for _, seconds, _, _ in found),
        "waited_ms": 1000 * sum(waited for _, _, waited, _ in found) / ranks,
        "memory_mib": memory / 2**20,
        "processes": count,
        "checksum": sum(checksum for *_, checksum in found),
    }


SHAPE: Final = f"{MICRO_BATCHES} micro-batches of {MICRO_BATCH} x {SEQUENCE} tokens per rank and step"
PAUSE: Final = f"{WAITED_STEPS} more with {1000 * COMPUTE_S:.0f} ms of sleep after each, for the wait"
BODY: Final = f"""{{ranks}} ranks on one node, {SHAPE}, {{steps}} steps; {PAUSE}. All ways read
the same tokens (checksums equal).

| way | processes | tokens/s of the node | a rank waits per step, ms | memory of all, MiB |
|---|---|---|---|---|
{{rows}}

{{ratio}}

Memory is anonymous and shared memory (proportional set size) of ranks and helpers, the ranks' own included.
None of them computes document numbers, which attention within documents would need."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--ranks", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=60)
    options = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        write_data(folder / "x")
        ways = {
            way: measure(way, options.ranks, options.steps, folder)
            for way in ("direct", "shared", "DataLoader")
        }
    assert len({found["checksum"] for found in ways.values()}) == 1, "the ways read different tokens"
    for way, found in ways.items():
        rows.append(
            f"| {way} | {found['processes']:.0f} | {found['tokens_per_s'] / 1e6:.1f} M |"
            f" {found['waited_ms']:.2f} | {found['memory_mib']:.0f} |"
        )
    ours, rival = ways["shared"], ways["DataLoader"]
    ratio = (
        f"`shared` reads {ours['tokens_per_s'] / rival['tokens_per_s']:.1f} x the tokens/s of a DataLoader "
        f"per rank in {ours['memory_mib'] / rival['memory_mib']:.2f} of its memory; a rank waits "
        f"{ours['waited_ms'] / rival['waited_ms']:.2f} of the time."
    )
    body = BODY.format(rows="\n".join(rows), ratio=ratio, ranks=options.ranks, steps=options.steps)
    print(body)
    write_result("data", body)


if __name__ == "__main__":
    main()
