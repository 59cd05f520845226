"""Whether a driver that ended is followed by another one, and what is said about its end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Final

from megascale.errors import InputError, JobFailedError

_QUICK_DEATH_S: Final = 5.0
_DEATHS: Final = 5
_TAIL_BYTES: Final = 16_384
_TAIL_LINES: Final = 5
_LOG_PREFIX: Final = re.compile(r"^\d{4}-\S+ \S+ [A-Z]+ driver[^:]*: ")

Progress = tuple[int, int]
"""Attempt and step of a job."""


class DriverDeaths:
    """Counts the drivers in a row that ended at once, or without any progress of the job meanwhile.

    Args:
        log: the file that drivers write to.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._in_a_row = 0
        self._since_s, self._since, self._log_bytes = 0.0, (0, 0), 0

    def born(self, now_s: float, progress: Progress) -> None:
        """Note when a driver began and how far the job was."""
        self._since_s, self._since = now_s, progress
        self._log_bytes = self._log.stat().st_size if self._log.exists() else 0

    def died(self, now_s: float, code: int | None, progress: Progress) -> str:
        """Return how the driver ended, for people.

        Args:
            now_s: seconds, of the same clock as for `born`.
            code: the exit code, negative for a signal, None if it is not known.

        Raises:
            InputError: what the driver was given is wrong, which the next driver would find too.
            JobFailedError: as many drivers in a row as are tried ended at once or without progress.
        """
        lines = self._last_lines()
        reason = _LOG_PREFIX.sub("", lines[-1]) if lines else "its log says nothing"
        if code == InputError.exit_code:
            raise InputError(f"the driver cannot run this job: {reason}")
        counts = now_s - self._since_s < _QUICK_DEATH_S or progress == self._since
        self._in_a_row = self._in_a_row + 1 if counts else 1
        if self._in_a_row >= _DEATHS:
            text = "\n".join(lines) or reason
            raise JobFailedError(f"the driver died {self._in_a_row} times in a row:\n{text}\n({self._log})")
        return f"{_how(code)}{f' ({reason})' if code is not None and code > 0 else ''}"

    def _last_lines(self) -> list[str]:
        """The last lines that this driver wrote."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_bytes, end - _TAIL_BYTES))
                text = log.read(_TAIL_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _how(code: int | None) -> str:
    if code is None:
        return "the driver is gone"
    if code < 0:
        return f"the driver was killed by {signal.Signals(-code).name}"
    return f"the driver ended with exit code {code}"
