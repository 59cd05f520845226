"""What outlives a pod: rank logs and step records are copied beside the checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

from megascale.checkpoint.storage import LocalStorage, open_storage
from megascale.errors import InputError
from megascale.observe.rundir import RunDir

log = logging.getLogger(__name__)

PERIOD_S: Final = 30.0
_CLOSE_S: Final = 10.0
_PIECE_BYTES: Final = 4 << 20
_FILE_BYTES: Final = 256 << 20
_ATTEMPTS: Final = 2


class LogUploader:
    """Appends what is new in `logs/attempt-<A>/rank-<R>.log` and `metrics.jsonl` to files of the store.

    A copy is always a prefix of its source, so the store itself tells where to go on. Bounded: the newest two
    attempts, a piece of each file per round, and a limit for every file.
    """

    def __init__(self, run: RunDir, uri: str, name: str) -> None:
        self._run, self._uri, self._name = run, uri, name
        self._copying: asyncio.Task[None] | None = None
        self._complained = False
        self._due = asyncio.Event()

    def flush_soon(self) -> None:
        """An attempt ended: copy now."""
        self._due.set()

    async def serve(self) -> None:
        """Copy every half minute and when asked to; runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._due.wait()
            self._due.clear()
            await self._copy()

    async def close(self) -> None:
        """Copy what is left; a store that hangs is not waited for."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._copy(), _CLOSE_S)

    async def _copy(self) -> None:
        if self._copying is None or self._copying.done():
            self._copying = asyncio.create_task(asyncio.to_thread(self._copy_all))
        await asyncio.shield(self._copying)

    def _copy_all(self) -> None:
        try:
            storage = open_storage(self._uri)
            for source, target in self._files():
                _extend(storage, source, target)
        except (OSError, InputError) as error:
            if not self._complained:
                log.warning("logs and step records are not copied to %s: %s", self._uri, error)
            self._complained = True
        else:
            self._complained = False

    def _files(self) -> list[tuple[Path, str]]:
        logs = self._run.root / "logs"
        attempts = sorted(logs.glob("attempt-*"), key=lambda path: int(path.name.partition("-")[2]))
        found = [
            (path, path.relative_to(self._run.root).as_posix())
            for attempt in attempts[-_ATTEMPTS:]
            for path in sorted(attempt.glob("rank-*.log"))
        ]
        return [*found, (self._run.metrics_file, f"metrics/{self._name}.jsonl")]


def _extend(storage: LocalStorage, source: Path, target: str) -> None:
    copied = storage.size(target)
    try:
        with source.open("rb") as handle:
            handle.seek(copied)
            new = handle.read(min(_PIECE_BYTES, _FILE_BYTES - copied)) if copied < _FILE_BYTES else b""
    except FileNotFoundError:
        return
    if new:
        storage.append(target, new)
