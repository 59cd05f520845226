"""Replay of the lines of an event log that this version of the core wrote."""

from __future__ import annotations

from collections.abc import Iterable

from megascale.core.eventlog import Entry, Header, Mismatch, parse_line, replay
from megascale.core.machine import Core


def mismatches(lines: Iterable[str]) -> list[Mismatch]:
    """The lines where the core decides otherwise; every line must be of this version."""
    items = [(number, parse_line(line)) for number, line in enumerate(lines, start=1)]
    found = list(replay(items, _restored))
    assert len(found) == sum(isinstance(item, Entry) for _, item in items)
    return [mismatch for _, _, mismatch in found if mismatch is not None]


def _restored(header: Header) -> Core:
    assert header.decides_alike
    return Core.restore(header.policy, header.snapshot) if header.snapshot else Core(header.policy)
