"""Who may use the folder of a local run: the lock of its `megascale run`, and what `--fresh` deletes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megascale.errors import InputError, JobFailedError
from megascale.fleet.agents import running_agents
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import read_address

_ATTEMPTS: Final = 3
_PROBE_S: Final = 0.02
_PID_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class RunLock:
    """The open `run.lock` of a run, which has the process id of its owner.

    Attributes:
        owned: whether this process holds the lock; False when another `megascale run` does.
    """

    path: Path
    descriptor: int
    owned: bool

    def owner_pid(self) -> int | None:
        """The process id of the newest owner; None if it has not been written yet."""
        text = os.pread(self.descriptor, _PID_BYTES, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None

    def folder_was_removed(self) -> bool:
        """Whether the run's folder was deleted or replaced since the lock was opened."""
        try:
            return not os.path.samestat(os.fstat(self.descriptor), self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return True

    def check_folder(self) -> None:
        """Do nothing while the run's folder is there.

        Raises:
            JobFailedError: it was deleted or replaced.
        """
        if self.folder_was_removed():
            raise JobFailedError(
                f"{self.path.parent} was removed while the job ran: its record, its logs and the checkpoints "
                "in it are gone; run the job again to start over, or from the checkpoints in checkpoint.uri"
            )


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[RunLock]:
    """Take the run's lock for the block, unless another `megascale run` holds it.

    Raises:
        InputError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run.supervisor_lock, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, descriptor)
            owned = _lock(descriptor)
            if owned:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise InputError(f"cannot write to {run.root}: {error.strerror}") from error
        yield RunLock(run.supervisor_lock, descriptor, owned)


def empty(run: RunDir, job: str) -> None:
    """Delete what earlier runs left; the caller holds the run's lock.

    The two lock files stay: a lock belongs to the file and not to its name, so a new file of that name could
    be locked by a second process.

    Raises:
        InputError: the driver or an agent of an earlier run still runs, or a file cannot be deleted.
    """
    try:
        descriptor = os.open(run.driver_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(descriptor):
                raise _still_runs(job, f"its driver ({_driver_pid(run)})")
            for agent in running_agents(run):
                raise _still_runs(job, f"{agent.node} (pid {agent.pid})")
            for path in run.root.iterdir():
                if path in (run.supervisor_lock, run.driver_lock):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"cannot delete {error.filename or run.root}: {error.strerror}") from error


def _lock(descriptor: int) -> bool:
    """Take the lock of an open file; others that only look whether it is held hold it for an instant."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PROBE_S)
        else:
            return True
    return False


def _driver_pid(run: RunDir) -> str:
    address = read_address(run.driver_file)
    return f"pid {address.pid}" if address else "pid unknown"


def _still_runs(job: str, what: str) -> InputError:
    return InputError(
        f"{job} is still running: {what} outlived its `megascale run`; to stop it, run the job without "
        "--fresh and press Ctrl-C, then start over with --fresh"
    )
