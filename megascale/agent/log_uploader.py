"""Copies a pod's rank logs and step records to the checkpoint store, where they outlive the pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

from megascale.agent.ranklog import PARTS
from megascale.checkpoint.storage import LocalStorage, open_storage
from megascale.errors import InputError, UnreachableError
from megascale.observe.rundir import RunDir, log_part
from megascale.offload import StorageThread

log = logging.getLogger(__name__)

PERIOD_S: Final = 30.0
_CLOSE_S: Final = 10.0
_PIECE_BYTES: Final = 4 << 20
_FILE_BYTES: Final = 256 << 20
_ATTEMPTS: Final = 2


class LogUploader:
    """Appends new data of `logs/attempt-<A>/rank-<R>.log` and `metrics.jsonl` to files in the store.

    A copy is always a prefix of its source, so its size in the store is the offset to continue from. Only
    logs of the newest two attempts are copied, at most 4 MiB of a file per round, and of a rank's log in an
    attempt the first four files.

    Args:
        uri: checkpoint URI.
        name: the metrics are copied to `metrics/<name>.jsonl`.
    """

    def __init__(self, run: RunDir, uri: str, name: str) -> None:
        self._run, self._uri, self._name = run, uri, name
        self._store = StorageThread(f"the store of {uri}")
        self._complained = False
        self._due = asyncio.Event()

    def flush_soon(self) -> None:
        """Make `serve` copy without waiting for the next period; called when an attempt ended."""
        self._due.set()

    async def serve(self) -> None:
        """Copy every 30 seconds and after `flush_soon`, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._due.wait()
            self._due.clear()
            await self._store.call(self._copy_all)

    async def close(self) -> None:
        """Copy the remaining data; gives up after 10 seconds."""
        with contextlib.suppress(UnreachableError):
            await self._store.call(self._copy_all, _CLOSE_S)

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
            for first in sorted(attempt.glob("rank-*.log"))
            if "." not in first.stem
            for path in (log_part(first, part) for part in range(PARTS))
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
