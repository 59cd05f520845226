"""Finds the node and the peer that a message names."""

from __future__ import annotations

import re
from typing import Final

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.\-]*[A-Za-z0-9])?"
_ADDRESS = r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]+)"

_NODE: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"^(?P<node>{_NAME}):\d+:\d+ \[\d+\]",
        rf"^(?P<node>{_NAME}) \[\d+\] .*NCCL WARN",
        rf"^(?P<node>{_NAME}):\d+:\d+ .*NCCL ",
        rf"\b[Rr]ank[ =:]?\d+ (?:\(?(?:on|at)\)? )(?:host |node )?(?P<node>{_NAME})",
        rf"\b(?:host|hostname|node|nodename|node_name|nodeName|instance)\"?\s*[=:]\s*\"?(?P<node>{_NAME})",
        r"\b[Nn]ode[ /]\"?(?P<node>[a-z0-9][a-z0-9_.\-]*\d[a-z0-9_.\-]*|[a-z0-9]+(?:[.\-][a-z0-9]+)+)\b",
        rf"\bON (?P<node>{_NAME}) CANCELLED",
        rf"\bNode failure on (?P<node>{_NAME})",
        rf"\b[Nn]odes? (?P<node>{_NAME}) (?:not responding|is not responding|down|failed|has been)",
        rf"\b(?:error: )?(?P<node>{_NAME}): (?:task|tasks) \d+",
        rf"\bon (?:host|machine) (?P<node>{_NAME})",
    )
)
_PEER: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\bpeer \[?(?P<peer>{_ADDRESS}|{_NAME})\]?(?:<\d+>|:\d+)",
        rf"\b(?:to|from|with|remote peer|by) \[?(?P<peer>{_ADDRESS}|{_NAME})\]?<\d+>",
        r"\bremote=\[?(?P<peer>[^\]\s,]+?)\]?:\d+",
        rf"\bto \(?\[?(?P<peer>{_ADDRESS}|{_NAME})\]?(?:, |:)\d{{2,5}}\b",
        rf"\bserver (?P<peer>{_NAME})(?: not responding|[: ])",
    )
)
_NOT_NODES: Final = frozenset(
    {"none", "null", "unknown", "localhost", "the", "is", "not", "state", "status", "name", "group", "rank"}
)


def find_node(text: str) -> str | None:
    """The node on which, according to the message, the event happened, or None."""
    for pattern in _NODE:
        match = pattern.search(text)
        if match and match["node"].lower() not in _NOT_NODES and not match["node"].isdigit():
            return match["node"]
    return None


def find_peer(text: str) -> str | None:
    """The other end of a connection that a message names, or None."""
    for pattern in _PEER:
        match = pattern.search(text)
        if match:
            return match["peer"]
    return None
