"""The data loader of a node: one process reads the data into memory that all ranks share (MegaScale 3.4).

Local rank 0 forks the loader before it starts threads, and the loader dies with it. The loader fills a ring
of two slots, one per step: while the ranks train on step s, it reads step s + 1. A rank requests a step over
a socket and gets a response when its slot is ready; a request for s also releases s - 1. Slots are in a file
on tmpfs that every rank maps for reading.

    slot   micro-batches x data ranks of this node x micro-batch rows of
           tokens (sequence_length + 1) and, if requested, their document numbers, int32
"""

from __future__ import annotations

import mmap
import os
import selectors
import socket
import struct
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from megascale.data.loader_files import MEMORY, SOCKET, create_memory
from megascale.data.ramp import BatchSizes
from megascale.data.reading import Samples
from megascale.errors import DataError, LoaderError
from megascale.prctl import die_with_parent

SLOTS: Final = 2
_STEP: Final = struct.Struct("<q")
_JOIN_TIMEOUT_S: Final = 60.0
_DAMAGED: Final = -1


@dataclass(frozen=True, slots=True)
class NodeBatch:
    """The samples of a global batch that the ranks of one node use.

    Attributes:
        batches: samples of each step over all ranks.
        data_ranks: data-parallel ranks on this node, ascending; processes with equal ones use equal samples.
        data_size: data-parallel size of the job.
        with_documents: whether slots have document numbers.
    """

    sequence_length: int
    batches: BatchSizes
    micro_batch: int
    data_ranks: tuple[int, ...]
    data_size: int
    with_documents: bool = True

    @property
    def rows(self) -> int:
        """Samples of a full step that this node uses."""
        return self.batches.full // self.data_size * len(self.data_ranks)

    @property
    def slot_bytes(self) -> int:
        return 4 * self.rows * (self.sequence_length + 1) * (2 if self.with_documents else 1)

    def pieces(self, step: int) -> Iterator[tuple[int, int]]:
        """(row in the slot, first sample) of each micro-batch of a step."""
        first, row = self.batches.before(step), 0
        for index in range(self.batches.at(step) // (self.micro_batch * self.data_size)):
            for rank in self.data_ranks:
                yield row, first + (index * self.data_size + rank) * self.micro_batch
                row += self.micro_batch


class _Slots:
    """Arrays on the shared memory."""

    def __init__(self, path: Path, batch: NodeBatch, *, writable: bool) -> None:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        with path.open("r+b" if writable else "rb") as stream:
            self._memory = mmap.mmap(stream.fileno(), SLOTS * batch.slot_bytes, access=access)
        self._batch = batch

    def tokens(self, step: int) -> NDArray[np.int32]:
        """Tokens of `step`, (rows, sequence_length + 1)."""
        shape = (self._batch.rows, self._batch.sequence_length + 1)
        return self._view(step, 0, shape)

    def documents(self, step: int) -> NDArray[np.int32]:
        """Document numbers of the tokens of `step`, (rows, sequence_length + 1)."""
        batch = self._batch
        shape = (batch.rows, batch.sequence_length + 1)
        return self._view(step, 4 * batch.rows * shape[1], shape)

    def _view(self, step: int, skip: int, shape: tuple[int, int]) -> NDArray[np.int32]:
        at = (step % SLOTS) * self._batch.slot_bytes + skip
        count = shape[0] * shape[1]
        return np.frombuffer(self._memory, np.int32, count=count, offset=at).reshape(shape)


def start_loader(samples: Samples, batch: NodeBatch, prefix: Path, ranks: int, *, first_step: int) -> int:
    """Fork the loader of this node and return its pid. The calling process must have one thread.

    Args:
        prefix: path prefix of its socket and memory file, the same for all ranks of the node and attempt.
        ranks: number of processes that will connect.
        first_step: the first step that is read, 1-based.

    Raises:
        DataError: there is no room for the memory file.
    """
    memory, address = _memory_path(prefix), _socket_path(prefix)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for left in (memory, address):
            left.unlink(missing_ok=True)
        owner = create_memory(memory, SLOTS * batch.slot_bytes)
        listener.bind(str(address))
    except OSError as error:
        raise DataError(
            f"{memory}: cannot hold two steps of this node's samples ({SLOTS * batch.slot_bytes} bytes):"
            f" {error.strerror}; enlarge the file system or set data.loader to direct"
        ) from error
    listener.listen(ranks)
    loader = _Loader(samples, batch, _Slots(memory, batch, writable=True), first_step)
    pid = os.fork()
    if pid == 0:
        _serve(loader, listener, ranks, (memory, address))
    listener.close()
    os.close(owner)  # the loader's own copy keeps the lock
    return pid


def _serve(loader: _Loader, listener: socket.socket, ranks: int, files: tuple[Path, ...]) -> NoReturn:
    """Run the loader process. Its files are unlinked as soon as every rank has opened them."""
    die_with_parent()
    try:
        connections = loader.accept(listener, ranks)
        for path in files:
            path.unlink(missing_ok=True)
        loader.serve(connections)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(0)


class _Loader:
    """Reads steps in order, at most `SLOTS` ahead of the slowest rank."""

    def __init__(self, samples: Samples, batch: NodeBatch, slots: _Slots, first_step: int) -> None:
        self._samples, self._batch, self._slots = samples, batch, slots
        self._read = first_step - 1
        self._wanted: dict[socket.socket, int] = {}

    def accept(self, listener: socket.socket, ranks: int) -> list[socket.socket]:
        """Read the first step, then wait until all ranks are connected."""
        self._fill(self._read + 1)
        listener.settimeout(_JOIN_TIMEOUT_S)
        return [listener.accept()[0] for _ in range(ranks)]

    def serve(self, connections: list[socket.socket]) -> None:
        """Serve requests until a rank disconnects."""
        self._wanted = dict.fromkeys(connections, 0)
        with selectors.DefaultSelector() as selector:
            for connection in connections:
                selector.register(connection, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    raw = key.fileobj.recv(_STEP.size, socket.MSG_WAITALL)
                    if len(raw) != _STEP.size:
                        return
                    self._ask(key.fileobj, _STEP.unpack(raw)[0])

    def _ask(self, connection: socket.socket, step: int) -> None:
        self._wanted[connection] = step
        if step < self._read - SLOTS + 1:
            connection.send(_STEP.pack(_DAMAGED))
            return
        if step <= self._read:
            connection.send(_STEP.pack(step))
        # A slot is free once every rank has requested a later step.
        while self._read + 1 < min(self._wanted.values()) + SLOTS:
            self._fill(self._read + 1)
            for other, wanted in self._wanted.items():
                if wanted == self._read:
                    other.send(_STEP.pack(wanted))

    def _fill(self, step: int) -> None:
        tokens = self._slots.tokens(step)
        documents = self._slots.documents(step) if self._batch.with_documents else None
        size = self._batch.micro_batch
        for row, sample in self._batch.pieces(step):
            tokens[row : row + size] = self._samples.batch(sample, size)
            if documents is not None:
                documents[row : row + size] = self._samples.documents(sample, size)
        self._read = step


class NodeSamples:
    """The client of a node's loader in a rank, with the interface of `SampleStream`."""

    def __init__(self, batch: NodeBatch, prefix: Path) -> None:
        """Connect.

        Raises:
            LoaderError: the loader does not run.
        """
        self._batch = batch
        self._rows: dict[int, int] = {}
        self._rows_step = self._step = 0
        try:
            self._slots = _Slots(_memory_path(prefix), batch, writable=False)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(str(_socket_path(prefix)))
        except OSError as error:
            raise LoaderError(f"{prefix}: the node's data loader does not run: {error.strerror}") from error

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples of one micro-batch of this node, int64 (micro_batch, sequence_length + 1).

        Raises:
            ValueError: the samples are not a micro-batch of this node. LoaderError: the loader died.
        """
        step, row = self._find(first_index, count)
        return self._slots.tokens(step)[row : row + count].astype(np.int64)

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """Document numbers of the tokens, int32 (micro_batch, sequence_length + 1).

        Raises:
            ValueError: the loader was started without document numbers.
        """
        if not self._batch.with_documents:
            raise ValueError("this loader has no document numbers")
        step, row = self._find(first_index, count)
        return self._slots.documents(step)[row : row + count].copy()

    def close(self) -> None:
        """Disconnect; the loader ends when the first rank disconnects."""
        self._socket.close()

    def _find(self, first_index: int, count: int) -> tuple[int, int]:
        """(step, row in its slot) of a micro-batch; waits until the step has been read."""
        step = self._batch.batches.step_of(first_index)
        if step != self._rows_step:
            self._rows = {sample: row for row, sample in self._batch.pieces(step)}
            self._rows_step = step
        row = self._rows.get(first_index)
        if row is None or count != self._batch.micro_batch:
            raise ValueError(
                f"samples {first_index} to {first_index + count} are no micro-batch of this node"
            )
        if step != self._step:
            self._wait_for(step)
        return step, row

    def _wait_for(self, step: int) -> None:
        try:
            self._socket.sendall(_STEP.pack(step))
            raw = self._socket.recv(_STEP.size, socket.MSG_WAITALL)
        except OSError:
            raw = b""
        if len(raw) != _STEP.size or _STEP.unpack(raw)[0] != step:
            raise LoaderError(f"the node's data loader died before step {step}; see the log of local rank 0")
        self._step = step


def _memory_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}{MEMORY}")


def _socket_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}{SOCKET}")
