"""Snapshot files: what is whole, what is torn, what is damaged, whose they are."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megascale.checkpoint.snapshot import STATE_BYTES, SnapshotFile, SnapshotLayout, folded_crc, held
from megascale.core.contract.lineage import Commit

LAYOUT = SnapshotLayout(job="test", rank=1, world_size=2, pieces="abc", data_bytes=50_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node-0" / "0.snapshot"


def opened(path: Path, layout: SnapshotLayout) -> SnapshotFile:
    """The file as a rank opens it."""
    return SnapshotFile.adopt(path, layout) or SnapshotFile.create(path, layout)


def write(file: SnapshotFile, index: int, step: int, attempt: int = 1) -> None:
    file.begin(index)
    np.frombuffer(file.data(index), dtype=np.uint8)[: LAYOUT.data_bytes] = step
    file.finish(index, term=1, attempt=attempt, step=step, state=json.dumps({"step": step}).encode())


def test_two_snapshots_are_kept_and_the_older_gives_way(path: Path) -> None:
    file = opened(path, LAYOUT)
    assert file.snapshots() == []
    assert held([path]) == []
    for step in (1, 2, 3):
        write(file, step % 2, step)
    assert [snapshot.commit for snapshot in file.snapshots()] == [Commit(2, 1), Commit(3, 1)] == held([path])
    assert [file.state(snapshot)["step"] for snapshot in file.snapshots()] == [2, 3]


def test_a_copy_under_way_does_not_exist(path: Path) -> None:
    file = opened(path, LAYOUT)
    write(file, 0, 1)
    write(file, 1, 2)
    file.begin(0)
    assert held([path]) == [Commit(2, 1)]
    file.begin(1)
    assert held([path]) == []
    write(file, 0, 3)
    assert held([path]) == [Commit(3, 1)]


def test_another_process_adopts_the_file_with_its_snapshots(path: Path) -> None:
    write(opened(path, LAYOUT), 0, 5)
    adopted = opened(path, LAYOUT)
    (snapshot,) = adopted.snapshots()
    assert adopted.damage(snapshot) == ""
    assert set(bytes(adopted.data(0)[: LAYOUT.data_bytes])) == {5}


@pytest.mark.parametrize(
    "change", [{"rank": 0}, {"world_size": 4}, {"pieces": "abd"}, {"job": "other"}, {"data_bytes": 50_001}]
)
def test_a_file_of_another_layout_is_replaced(path: Path, change: dict[str, object]) -> None:
    write(opened(path, LAYOUT), 0, 5)
    assert opened(path, replace(LAYOUT, **change)).snapshots() == []
    assert held([path]) == []


@pytest.mark.parametrize("content", [b"", b"MSSNAP01", bytes(900_000), b"MSSNAP01" + b"\xff" * 900_000])
def test_a_file_that_is_no_snapshot_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert held([path]) == []
    assert opened(path, LAYOUT).snapshots() == []


def test_a_file_cut_short_is_replaced(path: Path) -> None:
    write(opened(path, LAYOUT), 0, 5)
    os.truncate(path, 60_000)
    assert held([path]) == []


def test_every_flipped_bit_is_found(path: Path) -> None:
    file = opened(path, LAYOUT)
    write(file, 0, 5)
    (snapshot,) = file.snapshots()
    state_at = LAYOUT.padded_bytes
    buffer = file._view[file._buffer_at(0) :]
    places = [0, 1, LAYOUT.data_bytes - 1, *random.Random(1).sample(range(LAYOUT.data_bytes), 50)]
    for at in [*places, state_at, state_at + snapshot.state_bytes - 1]:
        for bit in (1, 128):
            buffer[at] ^= bit
            assert file.damage(snapshot).startswith("state" if at >= state_at else "tensors")
            buffer[at] ^= bit
    assert file.damage(snapshot) == ""


def test_a_damaged_slot_is_no_snapshot(path: Path) -> None:
    file = opened(path, LAYOUT)
    write(file, 0, 5)
    file._view[4096 + 24] ^= 1  # the step
    assert file.snapshots() == []
    assert held([path]) == []


def test_state_that_does_not_fit_is_refused_and_leaves_no_snapshot(path: Path) -> None:
    file = opened(path, LAYOUT)
    write(file, 0, 4)
    file.begin(0)
    with pytest.raises(ValueError, match="at most 262144 fit"):
        file.finish(0, term=1, attempt=1, step=5, state=bytes(STATE_BYTES + 1))
    assert held([path]) == []


def test_the_checksum_sees_words_in_the_wrong_column() -> None:
    data = bytearray(8192)
    data[0:8] = b"12345678"
    moved = data[8:] + data[:8]
    assert folded_crc(memoryview(data)) != folded_crc(memoryview(moved))


def test_ranks_of_a_node_have_in_common_what_each_has(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{rank}.snapshot" for rank in range(2))
    one, other = (opened(path, LAYOUT) for path in (first, second))
    for index, step in enumerate((8, 9)):
        write(one, index, step)
        write(other, index, step - 1)
    assert held([first, second]) == [Commit(8, 1)]
    assert held([first, second, tmp_path / "missing"]) == []


WRITER = """
import sys, json
from pathlib import Path
import numpy as np
from megascale.checkpoint.snapshot import SnapshotFile, SnapshotLayout
layout = SnapshotLayout(**json.loads(sys.argv[2]))
file = SnapshotFile.create(Path(sys.argv[1]), layout)
views = [np.frombuffer(file.data(i), dtype=np.uint8)[: layout.data_bytes] for i in range(2)]
step = 0
while True:
    step += 1
    file.begin(step % 2)
    for at in range(0, layout.data_bytes, 500):  # many small writes, so that a kill falls between them
        views[step % 2][at : at + 500] = step % 251
    file.finish(step % 2, term=1, attempt=1, step=step, state=json.dumps({"step": step}).encode())
    if step == 1:
        print("ready", flush=True)
"""


def test_a_writer_killed_at_any_instant_leaves_only_whole_snapshots(tmp_path: Path) -> None:
    """SIGKILL at random instants: what the slots call whole is whole, and one of the two always is."""
    instants, torn = random.Random(2), 0
    layout = json.dumps({n: getattr(LAYOUT, n) for n in LAYOUT.__slots__})
    path = tmp_path / "0.snapshot"
    child = None
    for _ in range(12):
        path.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), layout], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(instants.random() / 50)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        file = opened(path, LAYOUT)
        found = file.snapshots()
        torn += len(found) == 1
        assert found
        for snapshot in found:
            assert file.damage(snapshot) == ""
            assert set(bytes(file.data(snapshot.index)[: LAYOUT.data_bytes])) == {snapshot.step % 251}
            assert file.state(snapshot) == {"step": snapshot.step}
    assert torn, "no kill fell into a copy"
