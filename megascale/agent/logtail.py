"""Follows a rank's log file: classifies new lines, and returns the last lines for exit reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megascale.core.rules import LineClassifier, RuleSet, rule_set
from megascale.job import TrainingJob
from megascale.job.log_rules import log_rules

ALERT_PREFIX: Final = b"megascale.alert "
_BUILTIN: Final = rule_set()
_READ_BYTES: Final = 256 * 1024
_LINE_BYTES: Final = 2000
_MATCHES_PER_READ: Final = 16


@dataclass(frozen=True, slots=True)
class LineMatch:
    """A log line that matched a rule, with the rule's id, class and action."""

    rule: str
    category: str
    action: str
    line: str


def rules_of(job: TrainingJob) -> RuleSet:
    """Return the built-in log rules combined with those of the manifest's `logRules`."""
    return rule_set(log_rules(job.spec.log_rules))


class LogTail:
    """Reads data appended to a log file since the last call, at most 256 KiB per call."""

    def __init__(self, path: Path, rules: RuleSet = _BUILTIN) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""
        self._classifier = LineClassifier(rules)

    def new_matches(self) -> list[LineMatch]:
        """Return new lines whose rule has an action: at most 16 per call, alerts of the rank first."""
        alerts, matches = [], []
        for line in self._new_lines():
            if line.startswith(ALERT_PREFIX):
                alerts.append(_alert(line))
                continue
            verdict = self._classifier.feed(line.decode(errors="replace")[:_LINE_BYTES])
            if verdict.rule is not None and verdict.action != "none" and verdict.scope != "consequence":
                matches.append(LineMatch(verdict.rule, verdict.category, verdict.action, verdict.line))
        return (alerts + matches)[:_MATCHES_PER_READ]

    def _new_lines(self) -> list[bytes]:
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                raw = handle.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(raw)
        *lines, self._rest = (self._rest + raw).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        return lines

    def last_lines(self, count: int) -> list[str]:
        """Return the last `count` non-empty lines of the file, without MegaScale's alert lines."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(0, 2)
                handle.seek(max(0, handle.tell() - count * _LINE_BYTES))
                raw = handle.read()
        except FileNotFoundError:
            return []
        lines = [line for line in raw.splitlines() if line.strip() and not line.startswith(ALERT_PREFIX)]
        return [line.decode(errors="replace")[:_LINE_BYTES] for line in lines[-count:]]


def _alert(line: bytes) -> LineMatch:
    try:
        data = json.loads(line[len(ALERT_PREFIX) :])
        return LineMatch(str(data["kind"]), "framework", "alert", str(data["message"]))
    except (ValueError, KeyError, TypeError):
        return LineMatch("unreadableAlert", "framework", "alert", line.decode(errors="replace")[:_LINE_BYTES])
