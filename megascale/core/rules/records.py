"""Input records of `analyze logs`: plain lines, or JSON objects with their text inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from megascale.core.rules.engine import LineClassifier, RuleSet, classify_text
from megascale.core.rules.model import Verdict
from megascale.core.rules.nccl_tests import BandwidthTable

_TEXT_KEYS: Final = ("text", "log", "message", "msg", "MESSAGE", "line")
_NODE_KEYS: Final = ("node", "host", "hostname", "nodeName", "node_name", "_HOSTNAME", "instance")
_WRITER_KEY: Final = "SYSLOG_IDENTIFIER"  # journalctl -o json
_LEVEL_KEYS: Final = ("level", "severity", "levelname", "lvl")


@dataclass(frozen=True, slots=True)
class RecordVerdict:
    """A record's own id, or its index from 0, and its class."""

    record: int | str
    verdict: Verdict


def classify_records(lines: Iterable[str], rules: RuleSet) -> Iterator[RecordVerdict]:
    """Classify a stream of records, one per line of input; blank lines are skipped.

    A JSON object with a text field is a record of its own, everything else a line of a plain log.
    """
    plain = LineClassifier(rules)
    bandwidths = BandwidthTable()
    index = 0
    for raw in lines:
        if not raw.strip():
            continue
        parsed = _parse_object(raw)
        if parsed is None:
            verdict, slow = plain.feed(raw), bandwidths.slow(raw)
            yield RecordVerdict(index, slow if slow is not None and verdict.action == "none" else verdict)
        else:
            text, node, identifier = parsed
            yield RecordVerdict(
                index if identifier is None else identifier, classify_text(text, rules, node=node)
            )
        index += 1


def _parse_object(raw: str) -> tuple[str, str | None, int | str | None] | None:
    stripped = raw.strip()
    if not (stripped.startswith("{") and stripped.endswith("}")):
        return None
    try:
        document = json.loads(stripped)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    text = next((document[key] for key in _TEXT_KEYS if isinstance(document.get(key), str)), None)
    if text is None:
        return None
    level = next((document[key] for key in _LEVEL_KEYS if isinstance(document.get(key), str)), "")
    prefix = (
        f"[{level.upper()}] "
        if level.upper() in {"DEBUG", "TRACE", "INFO", "NOTICE", "WARNING", "WARN"}
        else ""
    )
    writer = document.get(_WRITER_KEY)
    if isinstance(writer, str) and writer:
        prefix = f"{writer}[0]: {prefix}"  # as syslog writes it
    return prefix + text, _node_of(document), _identifier_of(document)


def _node_of(document: Mapping[str, Any]) -> str | None:
    nested = document.get("kubernetes")
    sources = [document, nested] if isinstance(nested, Mapping) else [document]
    for source in sources:
        for key in _NODE_KEYS:
            value = source.get(key)
            if isinstance(value, str) and value:
                return value
    return None


def _identifier_of(document: Mapping[str, Any]) -> int | str | None:
    for key in ("record", "id"):
        value = document.get(key)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value
    return None
