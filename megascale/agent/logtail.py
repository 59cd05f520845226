"""Following a rank's log file: alert lines as they come, the last lines when it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

ALERT_PREFIX: Final = b"megascale.alert "
_READ_BYTES: Final = 256 * 1024
_LINE_BYTES: Final = 2000


class LogTail:
    """Reads what was appended since the last call, a bounded piece at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def new_alerts(self) -> list[tuple[str, str]]:
        """(kind, message) of every complete new alert line."""
        found = []
        for line in self._new_lines():
            if line.startswith(ALERT_PREFIX):
                try:
                    data = json.loads(line[len(ALERT_PREFIX) :])
                    found.append((str(data["kind"]), str(data["message"])))
                except (ValueError, KeyError, TypeError):
                    found.append(("unreadableAlert", line.decode(errors="replace")[:_LINE_BYTES]))
        return found

    def _new_lines(self) -> list[bytes]:
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                raw = handle.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(raw)
        *lines, self._rest = (self._rest + raw).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        return lines

    def last_lines(self, count: int) -> list[str]:
        """The last non-empty lines of the file."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(0, 2)
                handle.seek(max(0, handle.tell() - count * _LINE_BYTES))
                raw = handle.read()
        except FileNotFoundError:
            return []
        lines = [line.decode(errors="replace")[:_LINE_BYTES] for line in raw.splitlines() if line.strip()]
        return lines[-count:]
