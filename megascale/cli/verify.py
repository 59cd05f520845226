"""Verifying an event log: its events go through the core again, and the same effects have to come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from megascale.cli.history import EventLogFile, core_of
from megascale.core.eventlog import ForeignEntry, Gap, Header, Mismatch, replay
from megascale.core.machine import CORE_VERSION, Core
from megascale.errors import InputError


@dataclass(slots=True)
class Verdict:
    """What was verified up to the first line that differs.

    Attributes:
        other_versions: driver lives that were recorded by another version of the core, by version.
        foreign: where a life stops being verified because a line is of a kind that is not known: line, kinds.
        gap: where a life stops being verified because events could not be written: line, their number.
    """

    lives: int = 0
    events: int = 0
    effects: int = 0
    mismatch: Mismatch | None = None
    other_versions: dict[int, int] = field(default_factory=dict)
    foreign: tuple[int, tuple[str, ...]] | None = None
    gap: tuple[int, int] | None = None

    def counts(self) -> dict[str, int]:
        """For JSON."""
        other = sum(self.other_versions.values())
        return {"lives": self.lives, "events": self.events, "effects": self.effects, "otherVersions": other}

    def skipped(self) -> Iterator[str]:
        """What was not verified, a sentence each."""
        for version, lives in sorted(self.other_versions.items()):
            yield f"not verified: driver lives recorded by {_other_version(version)}: {lives}"
        if self.foreign:
            line, kinds = self.foreign
            yield f"not verified from line {line} on: this version does not know {', '.join(kinds)}"
        if self.gap:
            line, events = self.gap
            yield f"not verified from line {line} on: {events} events could not be written"


def verify(log: EventLogFile) -> Verdict:
    """Replay every driver life that this version of the core recorded.

    Raises:
        InputError: the log is damaged, or none of its lives is of this version.
    """
    verdict = Verdict()
    for number, item, mismatch in replay(log, lambda header: _begin_life(verdict, header, log)):
        if isinstance(item, ForeignEntry):
            verdict.foreign = verdict.foreign or (number, item.kinds)
            continue
        if isinstance(item, Gap):
            verdict.gap = verdict.gap or (number, item.events)
            continue
        verdict.mismatch = mismatch
        if mismatch is not None:
            break
        verdict.events += 1
        verdict.effects += len(item.effects)
    if not verdict.lives:
        versions = " and ".join(_other_version(version) for version in sorted(verdict.other_versions))
        raise InputError(
            f"{log.path}: recorded by {versions}, and this program decides by version {CORE_VERSION}: "
            "`megascale events show` shows what it holds, only the program that wrote it can verify it"
        )
    return verdict


def _begin_life(verdict: Verdict, header: Header, log: EventLogFile) -> Core | None:
    if not header.decides_alike:
        version = header.core_version
        verdict.other_versions[version] = verdict.other_versions.get(version, 0) + 1
        return None
    verdict.lives += not header.continues
    return core_of(header, log.path)


def _other_version(version: int) -> str:
    return f"core version {version}"
