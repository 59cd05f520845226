"""A job's history from its event log alone; no job record is needed."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from megascale.core.contract.effects import Effect, Finish, Kill, Launch
from megascale.core.contract.events import (
    Event,
    Evidence,
    JobReport,
    NodeReport,
    RankEvidence,
    RankExited,
)
from megascale.core.eventlog import Entry, ForeignEntry, Gap, Header, parse_line
from megascale.core.machine import CORE_VERSION, Core
from megascale.core.state.record import Incident
from megascale.errors import InputError
from megascale.observe.rundir import log_part, log_parts

_LINE_CHARACTERS: Final = 1 << 24


class EventLogFile:
    """Reads an event log line by line, over all its files.

    Attributes:
        path: its first file.
        torn: the lines that a killed driver left incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn: list[int] = []
        self._parts = [path, *(log_part(path, part) for part in log_parts(path))]
        self._begins: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, Header | Entry | ForeignEntry | Gap]]:
        """Line numbers with the parsed lines.

        Raises:
            InputError: not an event log, or a line that is not its driver's last is damaged.
        """
        self.torn, begun = [], False
        for number, raw in enumerate(self._lines(), start=1):
            if len(raw) > _LINE_CHARACTERS:
                raise self._refused(number, f"has more than {_LINE_CHARACTERS} bytes, as no event has")
            try:
                item = parse_line(raw)
            except json.JSONDecodeError:
                self.torn.append(number)
                continue
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"not a line that this version (core {CORE_VERSION}) can read: {error}"
                raise self._refused(number, problem) from error
            # what a driver was writing when it died is followed by its successor's header, or nothing
            if self.torn[-1:] == [number - 1] and not isinstance(item, Header):
                raise self._refused(number - 1, "damaged in the middle of a driver's life")
            if not begun and not isinstance(item, Header):
                raise self._refused(number, "an event log begins with a header")
            begun = True
            yield number, item
        if not begun:
            raise self._refused(1, "not an event log; expected the events.jsonl of a run")

    def _lines(self) -> Iterator[str]:
        """The lines of all files of the log, in order."""
        self._begins, count = [], 0
        for path in self._parts:
            self._begins.append(count)
            with path.open(encoding="utf-8", errors="replace") as file:
                while raw := file.readline(_LINE_CHARACTERS + 1):
                    count += 1
                    yield raw

    def where(self, number: int) -> str:
        """File and line of a line that is counted over all files."""
        part = max(0, bisect.bisect_left(self._begins, number) - 1)
        return f"{self._parts[part]}:{number - (self._begins[part] if self._begins else 0)}"

    def _refused(self, number: int, problem: str) -> InputError:
        return InputError(f"{self.where(number)}: {problem}")


def core_of(header: Header, path: Path) -> Core:
    """The core as it was when this driver life began.

    Raises:
        InputError: the snapshot in the header is of another version.
    """
    if not header.snapshot:
        return Core(header.policy)
    try:
        return Core.restore(header.policy, header.snapshot)
    except ValueError as error:
        raise InputError(f"{path}: a header of core version {header.core_version}: {error}") from error


@dataclass(slots=True)
class Attempt:
    """A launch of all ranks and how it went; times are Unix seconds, None = not reached."""

    launch: Launch
    at: float
    step: int = 0
    ended_at: float | None = None
    ended_by: str = ""


@dataclass(slots=True)
class IncidentStory:
    """An incident with the whole text that its record shortens, and what was done while it was open."""

    incident: Incident
    reason: str = ""
    decision: str = ""
    evidence: tuple[str, ...] = ()
    effects: dict[str, tuple[float, Effect]] = field(default_factory=dict)
    ranks: dict[int, RankEvidence] = field(default_factory=dict)

    def note(self) -> None:
        """Keep the texts as long as they are whole."""
        incident = self.incident
        if not self.reason.startswith(incident.reason):
            self.reason = incident.reason
        if not self.decision.startswith(incident.decision):
            self.decision = incident.decision
        if not incident.outcome or not self.evidence:
            self.evidence = tuple(incident.evidence)

    def whole(self) -> Incident:
        """The incident with its texts as they were before they were shortened."""
        self.incident.reason, self.incident.decision = self.reason, self.decision
        self.incident.evidence = list(self.evidence)
        return self.incident


class History:
    """Everything that a log holds, in order of time.

    Attempts and effects are those that were recorded; incidents come from running the events through the
    core again, up to where events are missing.

    Attributes:
        undone: incidents that a driver decided on and died before its record held them; nothing came of them.
        other_versions: versions of the core that recorded some of the log, other than this one.
        foreign: number of lines of a kind that is not known.
        missing: number of events that could not be written.
    """

    def __init__(self, log: EventLogFile) -> None:
        self.job = ""
        self.lives = 0
        self.began_at = 0.0
        self.incidents: dict[str, IncidentStory] = {}
        self.attempts: dict[int, Attempt] = {}
        self.undone: list[str] = []
        self.other_versions: set[int] = set()
        self.foreign = 0
        self.missing = 0
        self.end: tuple[float, Finish] | None = None
        core: Core | None = None
        for _, item in log:
            if isinstance(item, Header):
                core = self._begin_life(item, log.path)
            elif isinstance(item, ForeignEntry):
                self.foreign += 1
            elif isinstance(item, Gap):
                self.missing += item.events
                core = None
            elif core is not None:
                self._take(core, item)
            else:
                self._follow_entry(item)

    def doubts(self) -> Iterator[str]:
        """Why what is shown may not be what happened, a sentence each."""
        for version in sorted(self.other_versions):
            yield (
                f"recorded by core version {version}, shown by {CORE_VERSION}: attempts and effects are as "
                "recorded, the texts of incidents as this version would have written them"
            )
        if self.foreign:
            yield f"lines that this version cannot read, left out: {self.foreign}"
        if self.missing:
            yield f"events that could not be written, e.g. because the disk was full: {self.missing}"

    def _begin_life(self, header: Header, path: Path) -> Core:
        core = core_of(header, path)
        if not header.decides_alike:
            self.other_versions.add(header.core_version)
        self.job, self.lives = header.job, self.lives + (not header.continues)
        for incident_id in [i for i in self.incidents if _number(i) >= core.record.next_incident]:
            del self.incidents[incident_id]
            self.undone.append(incident_id)
        for attempt in [a for a in self.attempts if a > core.record.attempt]:
            del self.attempts[attempt]
        self._meet(core)
        return core

    def _take(self, core: Core, entry: Entry) -> None:
        record = core.record
        self.began_at = self.began_at or entry.at
        before, count = record.incident, record.next_incident
        core.step(entry.event, entry.at, entry.waited_s)
        if record.incident is not before or record.next_incident != count:
            self._meet(core)
        subject = record.incident or before
        story = self.incidents[subject.id] if subject else None
        if story is not None:
            story.note()
        for effect in entry.effects:
            if story is not None:
                story.effects.setdefault(effect.effect_id, (entry.at, effect))
        if story is not None and isinstance(entry.event, Evidence):
            story.ranks |= {rank.rank: rank for rank in entry.event.ranks}
        self._follow_entry(entry)

    def _follow_entry(self, entry: Entry) -> None:
        for effect in entry.effects:
            self._follow(entry.at, effect)
        self._follow_steps(entry.event)

    def _meet(self, core: Core) -> None:
        """Take up the incidents that are new, or that a new core holds as other objects."""
        record = core.record
        for incident in (*record.incidents, *([record.incident] if record.incident else ())):
            story = self.incidents.setdefault(incident.id, IncidentStory(incident))
            story.incident = incident
            story.note()

    def _follow(self, at: float, effect: Effect) -> None:
        """Effects that were issued again after a driver's death count from when they were issued first."""
        if isinstance(effect, Launch):
            resumed = effect.resume.step if effect.resume else 0
            self.attempts.setdefault(effect.attempt, Attempt(effect, at, resumed))
        elif isinstance(effect, Kill):
            attempt = self.attempts.get(effect.attempt)
            if attempt is not None and attempt.ended_at is None:
                attempt.ended_at, attempt.ended_by = at, effect.reason
        elif isinstance(effect, Finish):
            self.end = (at, effect)

    def _follow_steps(self, event: Event) -> None:
        if isinstance(event, NodeReport):
            step = max((rank.step for rank in event.ranks), default=0)
        elif isinstance(event, JobReport):
            step = event.progress.step
        elif isinstance(event, RankExited):
            step = event.step
        else:
            return
        attempt = self.attempts.get(event.attempt)
        if attempt is not None:
            attempt.step = max(attempt.step, step)


def _number(incident_id: str) -> int:
    return int(incident_id.removeprefix("i-"))
