"""The local job record: `record.json` and the manifests it refers to, locked for the driver's life."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from megascale.core.contract.codec import Json
from megascale.core.contract.policy import Policy
from megascale.core.machine import Core
from megascale.errors import FencedError, InputError
from megascale.observe.rundir import RunDir, write_atomically
from megascale.offload import StorageThread

RECORD_VERSION: Final = 1
"""Version of the record's format. Adding a field does not change it; it is raised only when an older program
would misread the record (decision 0098)."""

_REMEDY: Final = "start over with --fresh"
_SHOWN: Final = 300
_SHAPES: Final[tuple[tuple[str, Callable[[Any], bool], str], ...]] = (
    ("term", lambda term: type(term) is int and term >= 1, "a whole number >= 1"),
    ("core", lambda core: core is None or isinstance(core, dict), "a mapping or null"),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """The contents of a record when a driver claims it.

    Attributes:
        term: the term of the claiming driver.
        snapshot: the core's state, None for a new job.
        revisions: revision -> canonical JSON of each manifest stored with the record.
    """

    term: int
    snapshot: Json
    revisions: Mapping[str, str] = field(default_factory=dict)


class RecordStore(Protocol):
    """Stores a job's record: in a file for local runs, in a ConfigMap on a cluster."""

    async def claim(self) -> Claim:
        """Take over the record with the next higher term.

        Raises:
            FencedError: another driver holds the record.
            InputError: the record is damaged or of another version.
        """

    async def close(self) -> None:
        """Release the record so that the next driver can claim it."""

    async def write(self, snapshot: Json, revisions: Mapping[str, str]) -> None:
        """Store the snapshot durably, with exactly these manifests.

        Raises:
            OSError, UnreachableError: the store is full or cannot be reached; the caller may retry.
            FencedError: a driver of a higher term took over.
        """

    async def confirm(self) -> None:
        """Read who holds the record.

        Raises:
            FencedError: a driver of a higher term does.
            OSError, UnreachableError: it cannot be read.
        """


class LocalRecord:
    """Implements `RecordStore` with a file and flock."""

    def __init__(self, run: RunDir, job: str) -> None:
        self._run, self._job = run, job
        self._lock = -1
        self._term = 0
        self._disk = StorageThread(str(run.record_file))

    async def claim(self) -> Claim:
        self._lock = os.open(self._run.driver_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FencedError(f"another driver holds {self._run.driver_lock}") from error
        record = read_record(self._run)
        self._term = int(record["term"]) + 1 if record else 1
        snapshot = record["core"] if record else None
        self._store(snapshot)
        return Claim(self._term, snapshot, self._stored_revisions())

    def _stored_revisions(self) -> dict[str, str]:
        # Bytes that are no text become one with another digest, which whoever reads the manifest refuses.
        return {path.stem: path.read_text(errors="replace") for path in self._revision_files()}

    def _revision_files(self) -> list[Path]:
        return [path for path in self._run.revisions.glob("*.json") if path.is_file()]

    async def write(self, snapshot: Json, revisions: Mapping[str, str]) -> None:
        await self._disk.call(lambda: self._write(snapshot, revisions))

    def _write(self, snapshot: Json, revisions: Mapping[str, str]) -> None:
        # Write manifests before the record that refers to them and delete unreferenced ones after it, so
        # that a crash never leaves a record without its manifests.
        self._run.revisions.mkdir(exist_ok=True)
        for revision, text in revisions.items():
            path = self._run.revisions / f"{revision}.json"
            # A file that was changed from outside is repaired.
            if not path.is_file() or path.read_bytes() != text.encode():
                write_atomically(path, text)
        self._store(snapshot)
        for path in self._revision_files():
            if path.stem not in revisions:
                path.unlink(missing_ok=True)

    async def confirm(self) -> None:
        """Do nothing: no other driver can claim the record while this one has its lock."""

    async def close(self) -> None:
        os.close(self._lock)

    def _store(self, snapshot: Json) -> None:
        document = {"version": RECORD_VERSION, "job": self._job, "term": self._term, "core": snapshot}
        write_atomically(self._run.record_file, json.dumps(document))


def read_record(run: RunDir) -> dict[str, Any] | None:
    """Read the record as JSON values; returns None for a job that never ran.

    Raises:
        InputError: the record is damaged or of another version.
    """
    try:
        raw = run.record_file.read_bytes()
    except FileNotFoundError:
        return None
    where = str(run.record_file)
    record = checked_record(raw, where, _REMEDY)
    check_core(record["core"], where, _REMEDY)
    return record


def checked_record(raw: str | bytes, where: str, remedy: str) -> dict[str, Any]:
    """Return a record's JSON values: version, term and core, whose contents `check_core` checks.

    Args:
        where: what holds the record, for errors; `remedy`: what a person does about a damaged one.

    Raises:
        InputError: the record is damaged or of another version.
    """
    try:
        record: dict[str, Any] = json.loads(raw)
        version = record["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is damaged; {remedy}") from error
    if version != RECORD_VERSION:
        raise InputError(
            f"{where} is version {version}, this program reads {RECORD_VERSION}; run it with the version of "
            "the program that wrote it, or a later one"
        )
    for name, is_right, expected in _SHAPES:
        if name not in record or not is_right(record[name]):
            found = f"is {record[name]!r}" if name in record else "is missing"
            raise _damaged(where, f"{name} {found[:_SHOWN]}, expected {expected}", remedy)
    return record


def check_core(core: Json, where: str, remedy: str) -> None:
    """Check that a record's `core` is the state of a job; arguments as of `checked_record`.

    Raises:
        InputError: it is not.
    """
    try:
        Core.restore(Policy(), core or {})
    except (ValueError, TypeError) as error:
        raise _damaged(where, f"core: {error}"[:_SHOWN], remedy) from error


def _damaged(where: str, what: str, remedy: str) -> InputError:
    return InputError(f"{where} is damaged: {what}; {remedy}")
