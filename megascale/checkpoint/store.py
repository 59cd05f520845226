"""The checkpoints of a job: lists, commits and prunes them. Does not import torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from megascale.checkpoint.manifest import CommitRecord, Manifest, parse_manifest
from megascale.checkpoint.soundness import problems_of
from megascale.checkpoint.storage import open_storage
from megascale.core.contract.lineage import Commit, Lineage, is_on_lineage
from megascale.errors import CheckpointCorruptError, CheckpointSaveError, UnreachableError

COMMITS = "commits"
_COMMIT_NAME = re.compile(r"^(\d+)\.(\d+)\.json$")
_COMMIT_BYTES: Final = 1 << 16
_MANIFEST_BYTES: Final = 1 << 30
_PROBLEMS: Final = 3
"""Named of a manifest that contradicts itself."""
_STEP_NAME = re.compile(r"^step-(\d+)$")
_ATTEMPT_NAME = re.compile(r"^attempt-(\d+)$")


@dataclass(frozen=True, slots=True)
class Scan:
    """Contents of the commits folder.

    Attributes:
        records: readable commits, oldest first.
        damaged: one line per unreadable commit file, with the reason.
        foreign: names of other files.
    """

    records: list[CommitRecord]
    damaged: list[str]
    foreign: list[str]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Commits, and folders without a commit, that `prune` removed, and its problems."""

    removed: list[Commit]
    problems: list[str]

    def summary(self) -> str:
        """The problems as one line for an alert: the first of them, and the number of the others."""
        others = len(self.problems) - 1
        return self.problems[0] + (f" (and {others} more)" if others > 0 else "") if self.problems else ""


def folder_of(commit: Commit) -> str:
    return f"step-{commit.step}/attempt-{commit.attempt}"


def commit_name(commit: Commit) -> str:
    return f"{COMMITS}/{commit.step}.{commit.attempt}.json"


def shard_name(commit: Commit, rank: int) -> str:
    return f"{folder_of(commit)}/rank-{rank}.bin"


class CheckpointStore:
    """The checkpoints of one job under one URI.

    Raises:
        InputError: the URI is not a path or file:///path, or is a file.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.storage = open_storage(uri)

    def commits(self) -> list[Commit]:
        """All readable commits, oldest first, on the lineage or not."""
        return [record.commit for record in self.scan().records]

    def scan(self) -> Scan:
        """Read the commits folder; damaged and foreign files are part of the result, not errors."""
        scan = Scan([], [], [])
        for name in self._names(COMMITS):
            found = _COMMIT_NAME.match(name)
            if not found:
                scan.foreign.append(f"{COMMITS}/{name}")
                continue
            try:
                scan.records.append(self.record(Commit(int(found[1]), int(found[2]))))
            except CheckpointCorruptError as error:
                scan.damaged.append(str(error))
        scan.records.sort(key=lambda record: record.commit)
        return scan

    def has(self, commit: Commit) -> bool:
        """Whether the commit's file exists, readable or not."""
        return self.storage.exists(commit_name(commit))

    def record(self, commit: Commit) -> CommitRecord:
        """Read the file of a commit.

        Raises:
            CheckpointCorruptError: there is none, or it is damaged.
        """
        name = commit_name(commit)
        try:
            record = CommitRecord.model_validate_json(self._read(name, commit, _COMMIT_BYTES))
        except ValidationError as error:
            raise _corrupt(f"{name}: damaged: {error.errors()[0]['msg']}", commit) from error
        if record.commit != commit:
            raise _corrupt(f"{name}: damaged: says step {record.step} attempt {record.attempt}", commit)
        return record

    def manifest(self, commit: Commit) -> Manifest:
        """Read the manifest of a commit and compare it with the digest in the commit file.

        Raises:
            CheckpointCorruptError: either file is missing or damaged, or the manifest contradicts itself.
            UnreachableError: the file system returns an error.
        """
        record = self.record(commit)
        name = f"{folder_of(commit)}/manifest.json"
        path = str(self.storage.path(name))
        manifest = parse_manifest(self._read(name, commit, _MANIFEST_BYTES), record, path)
        problems = list(itertools.islice(problems_of(manifest), _PROBLEMS))
        if problems:
            raise _corrupt(f"{path}: {'; '.join(problems)}", commit)
        return manifest

    def publish(self, manifest: bytes, record: CommitRecord) -> None:
        """Write the manifest and create the commit file, which makes the checkpoint exist.

        The caller has made the shard files durable. Each file is durable before one that refers to it.

        Raises:
            CheckpointSaveError: the commit exists with other contents.
            OSError: the file system returns an error.
        """
        folder = folder_of(record.commit)
        self.storage.write(f"{folder}/manifest.json", manifest)
        self.storage.write(f"{folder}/commit.json", record.to_bytes())
        self.storage.sync(folder)
        try:
            self.storage.publish(f"{folder}/commit.json", commit_name(record.commit))
        except FileExistsError as error:
            # A network file system may repeat a link whose response was lost.
            if self.record(record.commit).manifest_sha256 != record.manifest_sha256:
                raise CheckpointSaveError(
                    f"step {record.step} of attempt {record.attempt} is already committed with other content"
                ) from error

    def remove(self, commit: Commit) -> None:
        """Remove a checkpoint, its commit file first, so that an interruption leaves no partial one."""
        self.storage.remove(commit_name(commit))
        self.storage.remove_folder(folder_of(commit))

    def prune(self, keep: int, lineage: Lineage, attempt: int) -> PruneReport:
        """Remove checkpoints that `attempt` will not restore.

        The newest `keep` commits on its lineage stay, and everything of newer attempts. Folders without a
        commit stay if they are of this attempt or newer than its newest commit, because a save may be under
        way. A folder that cannot be listed and a removal that fails are part of the result; the next call
        tries again.

        Raises:
            ValueError: keep < 1.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, at least 1 checkpoint is kept")
        try:
            doomed = self._doomed(keep, lineage, attempt)
        except UnreachableError as error:
            return PruneReport([], [str(error)])
        removed, problems = [], []
        for commit in sorted(doomed):
            try:
                self.remove(commit)
            except OSError as error:
                problems.append(f"cannot remove {folder_of(commit)}: {error.strerror}")
            else:
                removed.append(commit)
        return PruneReport(removed, problems)

    def _doomed(self, keep: int, lineage: Lineage, attempt: int) -> set[Commit]:
        commits = self.commits()
        line = [commit for commit in commits if is_on_lineage(commit, lineage, attempt)]
        if not line:
            return set()
        doomed = {c for c in commits if c.attempt <= attempt} - set(line[-keep:])
        return doomed | {c for c in self._folders() if c.attempt < attempt and c < line[-1]} - set(commits)

    def _folders(self) -> Iterable[Commit]:
        for step_folder in self._names("."):
            step = _STEP_NAME.match(step_folder)
            for attempt_folder in self._names(step_folder) if step else ():
                attempt = _ATTEMPT_NAME.match(attempt_folder)
                if step and attempt:
                    yield Commit(int(step[1]), int(attempt[1]))

    def _names(self, folder: str) -> list[str]:
        try:
            return self.storage.names(folder)
        except OSError as error:
            raise UnreachableError(f"cannot list {self.storage.path(folder)}: {error.strerror}") from error

    def _read(self, name: str, commit: Commit, most_bytes: int) -> bytes:
        try:
            size = self.storage.size(name)
            if size > most_bytes:
                raise _corrupt(
                    f"{self.storage.path(name)}: has {size} bytes, expected at most {most_bytes}", commit
                )
            return self.storage.read(name)
        except FileNotFoundError as error:
            raise _corrupt(f"{self.storage.path(name)}: the file is missing", commit) from error
        except OSError as error:
            raise UnreachableError(f"cannot read {self.storage.path(name)}: {error.strerror}") from error


def _corrupt(message: str, commit: Commit) -> CheckpointCorruptError:
    return CheckpointCorruptError(message, step=commit.step, attempt=commit.attempt)
