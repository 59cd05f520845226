"""The node's loader against the stream it reads: the same samples for every rank, a step ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.node_loader import NodeBatch, NodeSamples, _Loader, _memory_path, _Slots
from megascale.data.ramp import BatchSizes
from megascale.data.samples import SampleStream
from megascale.errors import LoaderError

LOADER = """
import os, sys
from pathlib import Path
from megascale.data.node_loader import NodeBatch, start_loader
from megascale.data.ramp import BatchSizes
from megascale.data.samples import SampleStream

prefix, place, ranks, first = sys.argv[1:]
samples = SampleStream.open(Path(prefix), 8, seed=3)
batch = NodeBatch(8, BatchSizes(24, 8, 8, 22), 2, (1, 2), 4)
pid = start_loader(samples, batch, Path(place), int(ranks), first_step=int(first))
print("ready", flush=True)
os.waitpid(pid, 0)
"""
RAMP = BatchSizes(full=24, start=8, increment=8, every_steps=22)
BATCH = NodeBatch(sequence_length=8, batches=RAMP, micro_batch=2, data_ranks=(1, 2), data_size=4)


@pytest.fixture
def stream(tmp_path: Path) -> SampleStream:
    rng = np.random.default_rng(0)
    with IndexedWriter(bin_path(tmp_path / "x"), idx_path(tmp_path / "x"), np.dtype("<u2")) as writer:
        for length in rng.integers(1, 20, 300):
            writer.append(rng.integers(0, 1000, length).astype("<u2"))
            writer.end_document()
    return SampleStream.open(tmp_path / "x", 8, seed=3)


def start(tmp_path: Path, ranks: int, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADER, str(tmp_path / "x"), str(tmp_path / "p"), str(ranks), str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def compare(stream: SampleStream, samples: NodeSamples, data_rank: int, steps: range) -> None:
    for step in steps:
        for micro_batch in range(RAMP.at(step) // 8):
            first = RAMP.before(step) + (micro_batch * 4 + data_rank) * 2
            assert (samples.batch(first, 2) == stream.batch(first, 2)).all()
            assert (samples.documents(first, 2) == stream.documents(first, 2)).all()


def test_every_rank_gets_its_samples_at_its_own_pace(stream: SampleStream, tmp_path: Path) -> None:
    process = start(tmp_path, ranks=3, first=41)
    first, second, third = (NodeSamples(BATCH, tmp_path / "p") for _ in range(3))
    for step in range(41, 60):
        compare(stream, second, 2, range(step, step + 1))
        compare(stream, first, 1, range(step, step + 1))
        compare(stream, third, 2, range(step, step + 1))
    assert sorted(path.name for path in tmp_path.glob("p.*")) == []
    first.close()
    assert process.wait(timeout=10) == 0
    with pytest.raises(LoaderError, match="loader died before step 60"):
        compare(stream, second, 2, range(60, 63))


def test_a_slot_is_not_overwritten_while_a_rank_may_read_it(stream: SampleStream, tmp_path: Path) -> None:
    memory = _memory_path(tmp_path / "p")
    memory.write_bytes(bytes(2 * BATCH.slot_bytes))

    class Ears:
        def __init__(self) -> None:
            self.heard: list[int] = []

        def send(self, raw: bytes) -> None:
            self.heard.append(int.from_bytes(raw, "little", signed=True))

    loader = _Loader(stream, BATCH, _Slots(memory, BATCH, writable=True), first_step=1)
    fast, slow = Ears(), Ears()
    loader._wanted = {fast: 0, slow: 0}  # type: ignore[dict-item]
    loader._fill(1)
    loader._ask(fast, 1)  # type: ignore[arg-type]
    assert (fast.heard, loader._read) == ([1], 1)
    loader._ask(slow, 1)  # type: ignore[arg-type]
    assert loader._read == 2
    loader._ask(fast, 2)  # type: ignore[arg-type]
    loader._ask(fast, 3)  # type: ignore[arg-type]
    assert (fast.heard, loader._read) == ([1, 2], 2)
    loader._ask(slow, 2)  # type: ignore[arg-type]
    assert (fast.heard, slow.heard, loader._read) == ([1, 2, 3], [1, 2], 3)


def test_samples_of_other_nodes_are_refused(stream: SampleStream, tmp_path: Path) -> None:
    process = start(tmp_path, ranks=1, first=1)
    samples = NodeSamples(BATCH, tmp_path / "p")
    for first, count in ((0, 2), (2, 1), (3, 2)):
        with pytest.raises(ValueError, match="no micro-batch of this node"):
            samples.batch(first, count)
    samples.close()
    process.wait(timeout=10)


def test_a_missing_loader_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LoaderError, match="data loader does not run: No such file"):
        NodeSamples(BATCH, tmp_path / "p")


def test_two_steps_fit_the_memory(stream: SampleStream, tmp_path: Path) -> None:
    process = start(tmp_path, ranks=1, first=1)
    steps, value_bytes, rows = 2, 4, 3 * 2 * 2
    assert (tmp_path / "p.data").stat().st_size == steps * value_bytes * rows * (9 + 9)
    samples = NodeSamples(BATCH, tmp_path / "p")
    samples.close()
    process.wait(timeout=10)
