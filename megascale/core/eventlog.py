"""The event log: every core input with the effects it led to, and replay of it.

JSON lines. A driver life begins with a header (core version, policy, the snapshot it started from);
each later line is one event: `{"at": seconds, "event": {...}, "effects": [...]}`. Because the core is
deterministic, feeding the events of a life to a core restored from its header must give the same effects.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.codec import Json, decode, encode
from megascale.core.contract.policy import Policy
from megascale.core.machine import CORE_VERSION, Core

_EVENTS: Final[dict[str, Any]] = {kind.__name__: kind for kind in ev.Event.__args__}
_to_text: Final = json.JSONEncoder(separators=(",", ":")).encode
_EFFECTS: Final[dict[str, Any]] = {kind.__name__: kind for kind in fx.Effect.__args__}


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, when it was taken in, and the effects the core answered with."""

    at: float
    event: ev.Event
    effects: tuple[fx.Effect, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The start of a driver life."""

    job: str
    policy: Policy
    snapshot: Json
    core_version: int = CORE_VERSION


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
    # `encode` leaves out defaults, and the default of this one changes with every version
    fields = {"core_version": header.core_version, **cast(dict[str, Json], encode(header))}
    return _to_text({"header": fields})


def entry_line(entry: Entry) -> str:
    line: dict[str, Any] = {"at": entry.at, "event": tagged(entry.event)}
    if entry.effects:
        line["effects"] = [tagged(effect) for effect in entry.effects]
    return _to_text(line)


def parse_line(line: str) -> Header | Entry:
    """One line of the log.

    Raises:
        ValueError: the line is torn or of another version.
    """
    data = json.loads(line)
    if "header" in data:
        return decode(Header, data["header"])
    effects = tuple(_untagged(_EFFECTS, effect) for effect in data.get("effects", ()))
    return Entry(float(data["at"]), _untagged(_EVENTS, data["event"]), effects)


def _untagged(kinds: dict[str, Any], data: dict[str, Json]) -> Any:  # noqa: ANN401 - an event or an effect
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}")
    return decode(kinds[str(kind)], fields)


def replay(lines: Iterable[str]) -> Iterator[Mismatch]:
    """Run a log through the core again and yield every line where it decides otherwise.

    Raises:
        ValueError: a line before the last cannot be read, or the log does not begin with a header.
    """
    core: Core | None = None
    for number, line in enumerate(lines, start=1):
        item = parse_line(line)
        if isinstance(item, Header):
            core = Core.restore(item.policy, item.snapshot) if item.snapshot else Core(item.policy)
            continue
        if core is None:
            raise ValueError("the log does not begin with a header")
        effects = tuple(core.step(item.event, item.at))
        if effects != item.effects:
            yield Mismatch(number, item, effects)
