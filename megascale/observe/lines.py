"""Appends whole lines to a file whose disk may be full: what does not fit is left out and counted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from megascale.observe.alerts import alert

_ALERT_S: Final = 60.0


class LineFile:
    """Appends lines, each in one write, so that lines of several writers do not mix.

    A line that cannot be written whole is taken back. An alert says so at once, and again every minute in
    which lines are left out; the writer goes on.

    Args:
        clock: monotonic seconds.

    Attributes:
        dropped: number of lines that were left out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        self._path, self._clock = path, clock
        self._alerted_at: float | None = None
        self._is_torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: str) -> None:
        """Append a line; one that cannot be written is left out."""
        raw = (b"\n" if self._is_torn else b"") + line.encode() + b"\n"
        try:
            written = os.write(self._descriptor, raw)
            if written != len(raw):
                self._take_back(written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._is_torn = False
        except OSError as error:
            self.dropped += 1
            self._complain(error)

    def _take_back(self, written: int) -> None:
        """Remove the part that was written, unless another writer has appended to it."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - written)
        else:
            self._is_torn = True

    def _complain(self, error: OSError) -> None:
        now = self._clock()
        if self._alerted_at is None or now - self._alerted_at >= _ALERT_S:
            self._alerted_at = now
            alert(
                "linesLeftOut",
                f"{self._path} cannot be written ({error.strerror}); training goes on, and lines are left "
                f"out ({self.dropped} so far)",
            )

    def close(self) -> None:
        os.close(self._descriptor)
