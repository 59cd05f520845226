"""The event log: every core input with the effects it led to, and replay of it.

JSON lines. A driver life begins with a header (core version, policy, the snapshot it started from);
each later line is one event: `{"at": seconds, "event": {...}, "effects": [...]}`, with `waited_s` if it
waited before it was taken in. Because the core is
deterministic, feeding the events of a life to a core restored from its header must give the same effects.

Two versions are in the header. `schema_version` is that of the lines: fields and kinds are added without a
new one, and it grows only when an older program would misread what is written. `core_version` is that of the
decisions: a log of another one can be read, but replaying it would compare different rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.bounded_json import parse_json
from megascale.core.contract.codec import Json, decode, encode
from megascale.core.contract.policy import Policy
from megascale.core.machine import CORE_VERSION, Core

SCHEMA_VERSION: Final = 1
_EVENTS: Final[dict[str, Any]] = {kind.__name__: kind for kind in ev.Event.__args__}
_to_text: Final = json.JSONEncoder(separators=(",", ":")).encode
_EFFECTS: Final[dict[str, Any]] = {kind.__name__: kind for kind in fx.Effect.__args__}
_GAP: Final = "EventsMissing"


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, when it was taken in, and the effects the core answered with.

    Attributes:
        waited_s: how long it had waited before.
    """

    at: float
    event: ev.Event
    effects: tuple[fx.Effect, ...]
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ForeignEntry:
    """A line with an event or effects of `kinds` that this version does not know."""

    at: float
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Stands for `events` entries that could not be written, e.g. because the disk was full."""

    at: float
    events: int


@dataclass(frozen=True, slots=True)
class Header:
    """The start of a driver life, or of a part of one: `continues` says that the same driver goes on."""

    job: str
    policy: Policy
    snapshot: Json
    core_version: int = CORE_VERSION
    schema_version: int = SCHEMA_VERSION
    continues: bool = False

    @property
    def decides_alike(self) -> bool:
        """Whether this version of the core decides by the same rules as the one that wrote the log."""
        return self.core_version == CORE_VERSION


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A line whose replayed effects differ from the recorded ones."""

    line: int
    entry: Entry
    replayed: tuple[fx.Effect, ...]


def tagged(value: ev.Event | fx.Effect) -> dict[str, Json]:
    """An event or effect as JSON values with its `kind`."""
    fields = encode(value)
    return {"kind": type(value).__name__, **(fields if isinstance(fields, dict) else {})}


def header_line(header: Header) -> str:
    # `encode` leaves out defaults, and the defaults of these change with the program
    versions = {"core_version": header.core_version, "schema_version": header.schema_version}
    return _to_text({"header": {**versions, **cast(dict[str, Json], encode(header))}})


def entry_line(entry: Entry | Gap) -> str:
    if isinstance(entry, Gap):
        return _to_text({"at": entry.at, "event": {"kind": _GAP, "events": entry.events}})
    line: dict[str, Any] = {"at": entry.at, "event": tagged(entry.event)}
    if entry.waited_s:
        line["waited_s"] = entry.waited_s
    if entry.effects:
        line["effects"] = [tagged(effect) for effect in entry.effects]
    return _to_text(line)


def parse_line(line: str) -> Header | Entry | ForeignEntry | Gap:
    """One line of the log.

    Raises:
        ValueError: the line is torn, of a newer schema than this version reads, or holds other values.
    """
    data: Any = parse_json(line)
    if "header" in data:
        return _parse_header(data["header"])
    at: float = decode(float, data["at"])
    event, effects = data["event"], data.get("effects", ())
    if event.get("kind") == _GAP:
        return Gap(at, decode(int, event["events"]))
    unknown = [*_unknown_kinds((event,), _EVENTS), *_unknown_kinds(effects, _EFFECTS)]
    if unknown:
        return ForeignEntry(at, tuple(unknown))
    decoded = tuple(_untagged(_EFFECTS, effect) for effect in effects)
    waited_s: float = decode(float, data.get("waited_s", 0.0))
    return Entry(at, _untagged(_EVENTS, event), decoded, waited_s)


def _parse_header(data: dict[str, Json]) -> Header:
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(f"an event log of schema {version}, this version reads up to {SCHEMA_VERSION}")
    return decode(Header, data)


def _unknown_kinds(items: Iterable[dict[str, Json]], known: dict[str, Any]) -> list[str]:
    return [str(item.get("kind")) for item in items if item.get("kind") not in known]


def _untagged(kinds: dict[str, Any], data: dict[str, Json]) -> Any:  # noqa: ANN401 - an event or an effect
    return decode(kinds[str(data["kind"])], data)


def replay(
    items: Iterable[tuple[int, Header | Entry | ForeignEntry | Gap]],
    restore: Callable[[Header], Core | None],
) -> Iterator[tuple[int, Entry | ForeignEntry | Gap, Mismatch | None]]:
    """Run a log through the core again; yields each entry's line number, the entry, and how it differs.

    After an entry of a kind that is not known, and after a gap, the rest of that driver life is left out.

    Args:
        restore: returns the core as it was when a driver life began, None to leave that life out.
    """
    core: Core | None = None
    for number, item in items:
        if isinstance(item, Header):
            core = restore(item)
        elif core is not None and isinstance(item, ForeignEntry | Gap):
            core = None
            yield number, item, None
        elif core is not None and isinstance(item, Entry):
            effects = tuple(core.step(item.event, item.at, item.waited_s))
            yield number, item, None if effects == item.effects else Mismatch(number, item, effects)
