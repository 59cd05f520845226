"""What one rank prints: read from a pipe, handed to the log watch and kept in files of bounded size."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from pathlib import Path
from typing import Final

from megascale.agent.logtail import LogTail
from megascale.observe.rundir import log_part

PART_BYTES: Final = 64 << 20
"""A rank's log goes on in a new file after this many bytes."""
PARTS: Final = 4
"""Of a rank's log the first file and the newest ones are kept, so many in all."""
_READ_BYTES: Final = 1 << 16
_PIPE_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_DRAIN_READS: Final = 64


class RankLog:
    """Reads a pipe in a thread of its own until everybody who can write to it has ended.

    A rank never sees the disk of its log: what cannot be written is left out, and a line in the file says how
    much it was.

    Args:
        path: the first file; `log_part` names the others.

    Attributes:
        unwritten_bytes: what could not be written to the files; grows.
    """

    def __init__(
        self, path: Path, tail: LogTail, *, part_bytes: int = PART_BYTES, parts: int = PARTS
    ) -> None:
        self.tail, self.unwritten_bytes = tail, 0
        self._path, self._part_bytes, self._parts = path, part_bytes, parts
        self._part, self._size, self._file, self._missing = 0, 0, -1, 0
        self._ends_line = True
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user's limit for pipes is reached: it stays at 64 KiB
            fcntl.fcntl(self._write, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._lock = threading.Lock()
        self._taken: deque[bytes] = deque()
        self._thread = threading.Thread(target=self._pump, name=f"the log {path.name}", daemon=True)
        self._thread.start()

    @property
    def inlet(self) -> Path:
        """The pipe as a file that any process of this user can open to write, until `close`."""
        return Path(f"/proc/{os.getpid()}/fd/{self._write}")

    def drain(self) -> None:
        """Read what an ended rank left in the pipe, so that the tail has its last words; at most 4 MiB."""
        for _ in range(_DRAIN_READS):
            if not self._take():
                return

    def close(self) -> None:
        """Stop holding the pipe open: the thread ends with the last process that can write to it."""
        os.close(self._write)

    def take_unwritten(self) -> int:
        """Return `unwritten_bytes` and set it to 0."""
        with self._lock:
            unwritten, self.unwritten_bytes = self.unwritten_bytes, 0
        return unwritten

    def join(self, timeout_s: float) -> None:
        """Wait until everything is in the files."""
        self._thread.join(timeout_s)

    def _pump(self) -> None:
        ready = select.poll()
        ready.register(self._read, select.POLLIN)
        while True:
            ready.poll()
            took = self._take()
            while self._taken:
                self._store(self._taken.popleft())
            if took == b"":
                break
        with self._lock:
            os.close(self._read)
            self._read = -1
        if self._file >= 0:
            os.close(self._file)

    def _take(self) -> bytes | None:
        """Read from the pipe once; None if it is empty, b"" if nobody can write to it any more."""
        with self._lock:
            if self._read < 0:
                return b""
            try:
                raw = os.read(self._read, _READ_BYTES)
            except BlockingIOError:
                return None
            if raw:
                self.tail.feed(raw)
                self._taken.append(raw)
            return raw

    def _store(self, raw: bytes) -> None:
        """Write to the newest file, and go on in a new one where a line ends."""
        room = self._room(raw)
        if room:
            self._append(raw[:room])
        if room < len(raw):
            self._append(raw[room:], begins_part=True)

    def _room(self, raw: bytes) -> int:
        """How much of it belongs into the newest file; a line may make it twice as long as it should be."""
        if self._file < 0:
            return 0
        if self._size < self._part_bytes:
            return len(raw)
        if self._ends_line:
            return 0
        end = raw.find(b"\n") + 1
        return end or (len(raw) if self._size < 2 * self._part_bytes else 0)

    def _append(self, raw: bytes, *, begins_part: bool = False) -> None:
        """Append to a file; what does not fit on the disk is left out."""
        note = b"\n[%d bytes of this log could not be written]\n" % self._missing if self._missing else b""
        text, written = note + raw, 0
        try:
            if begins_part:
                self._next_part()
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError:
            with self._lock:
                self.unwritten_bytes += min(len(raw), len(text) - written)
        lost = min(len(raw), len(text) - written)
        self._missing = lost if written >= len(note) else self._missing + lost
        self._size += written
        self._ends_line = text[:written].endswith(b"\n")

    def _next_part(self) -> None:
        part = self._part + 1 if self._file >= 0 else 0
        path = log_part(self._path, part)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._part, self._size = file, part, 0
        oldest = part - self._parts + 1
        if oldest >= 1:
            log_part(self._path, oldest).unlink(missing_ok=True)
