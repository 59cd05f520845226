"""The files of a local run, `runs/<job>/`; docs/files.md says who writes each."""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names every file of a run; makes folders, not contents."""

    root: Path

    @property
    def job_file(self) -> Path:
        return self.root / "job.yaml"

    @property
    def record_file(self) -> Path:
        return self.root / "record.json"

    @property
    def revisions(self) -> Path:
        """One `<revision>.json` per manifest that the job record refers to."""
        return self.root / "revisions"

    @property
    def driver_file(self) -> Path:
        return self.root / "driver.json"

    @property
    def token_file(self) -> Path:
        return self.root / "token"

    @property
    def events_file(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.root / "summary.json"

    @property
    def supervisor_lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def driver_lock(self) -> Path:
        return self.root / "driver.lock"

    @property
    def agents(self) -> Path:
        """One `<node>.json` and `<node>.token` per agent that was started."""
        return self.root / "agents"

    @property
    def fleet_file(self) -> Path:
        """The requests of the driver that the local fleet has carried out."""
        return self.root / "fleet.json"

    @property
    def faults(self) -> Path:
        """One marker per injected fault that has fired."""
        return self.root / "faults"

    def logs(self, attempt: int) -> Path:
        return self.root / "logs" / f"attempt-{attempt}"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.logs(attempt) / f"rank-{rank}.log"

    def rank_file(self, node: str, local_rank: int) -> Path:
        return self.root / "ranks" / f"{node}-{local_rank}.rank"

    def checkpoints(self, uri: str | None) -> str:
        """Where checkpoints go: the manifest's URI, a relative path counting from the working folder."""
        if uri is None:
            return str(self.root / "checkpoints")
        return uri if urlsplit(uri).scheme else str(Path(uri).absolute())

    def agent_token_file(self, node: str) -> Path:
        return self.agents / f"{node}.token"

    def renew_agent_token(self, node: str) -> str:
        """A new token for the agent of a node, readable by its owner only; those before are not valid."""
        self.agents.mkdir(parents=True, exist_ok=True)
        path = self.agent_token_file(node)
        path.unlink(missing_ok=True)
        return _write_token(path)

    def ensure_token(self) -> str:
        """The token of the run's users, made once, readable by its owner only."""
        try:
            return _write_token(self.token_file)
        except FileExistsError:
            return self.token_file.read_text().strip()


def _write_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(token)
    return token


def log_part(path: Path, part: int) -> Path:
    """The `part`-th file, counted from 0, of a log whose first file is `path`: rank-3.log, rank-3.1.log..."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}") if part else path


def log_parts(path: Path) -> list[int]:
    """The numbers of the files that a log has besides its first, in order."""
    names = (found.name for found in path.parent.glob(f"{path.stem}.*{path.suffix}"))
    numbers = (name[len(path.stem) + 1 : -len(path.suffix)] for name in names)
    return sorted(int(number) for number in numbers if number.isdigit())


def is_locked(path: Path) -> bool:
    """Whether a process holds an exclusive flock on the file; False if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` so that a reader and a crash see either the old or the new text.

    Raises:
        OSError: it cannot be written, e.g. because the disk is full; the old text stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
