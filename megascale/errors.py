"""The exception tree.

MegascaleError                 exit code 1
  InputError                   2: what the user gave is wrong
    ManifestError              2: a manifest, with one issue per wrong field
    SettingsError              2: the manifest does not fit the checkpoint or the data; no restart helps
    DataError                  2: training data missing, too small, truncated
  LoaderError                  1: the process that reads a node's data died
  UnreachableError             3: something needed does not answer
  JobFailedError               1: the job ended without completing
  FencedError                  1: a higher (term, attempt) exists; the holder must stop
  CheckpointError              1
    CheckpointSaveError        1: a save failed; training goes on
    CheckpointCorruptError     1: a committed checkpoint does not match its checksums

Programmer errors are ValueError, TypeError or AssertionError and are not caught.
"""

from __future__ import annotations

from dataclasses import dataclass


class MegascaleError(Exception):
    """Root of every error a user may see; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(MegascaleError):
    """What the user gave is wrong; nothing was started or changed."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ManifestIssue:
    """One wrong field of a manifest.

    Attributes:
        path: dotted field path, ``spec.runtime.megatron.parallelism.tensor``.
        message: what is wrong, naming the value and what is allowed.
        file: the file it was read from, or None.
        line: 1-based line, or None when the field is absent from the file.
        hint: what to do, or None.
    """

    path: str
    message: str
    file: str | None = None
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        text = f"{where}: {self.path}: {self.message}" if where else f"{self.path}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class ManifestError(InputError):
    """A manifest was refused; ``issues`` has one entry per wrong field."""

    def __init__(self, issues: list[ManifestIssue]) -> None:
        super().__init__("\n".join(str(issue) for issue in issues))
        self.issues = issues


class SettingsError(InputError):
    """The manifest does not fit the checkpoint, the data or the ranks; it is refused on every node."""


class DataError(InputError):
    """Training data is missing, too small or damaged."""


class LoaderError(MegascaleError):
    """The data loader of a node died, or does not run."""


class UnreachableError(MegascaleError):
    """A driver, store or file system that is needed does not answer."""

    exit_code = 3


class JobFailedError(MegascaleError):
    """The job ended without completing."""


class FencedError(MegascaleError):
    """A higher (term, attempt) exists; whoever gets this stops at once."""


class CheckpointError(MegascaleError):
    """Root of checkpoint errors."""


class CheckpointSaveError(CheckpointError):
    """A save did not reach its commit; nothing that was readable before is lost."""


class CheckpointCorruptError(CheckpointError):
    """A committed checkpoint does not match its manifest, or a snapshot in memory its checksums.

    Attributes:
        step, attempt: the commit that is damaged; tier: "durable" or "memory".
    """

    def __init__(self, message: str, *, step: int, attempt: int, tier: str = "durable") -> None:
        super().__init__(message)
        self.step = step
        self.attempt = attempt
        self.tier = tier


def first_error(problems: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a TaskGroup's, which is what made it cancel the others."""
    first = problems.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first
