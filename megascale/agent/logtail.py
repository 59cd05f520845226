"""Follows what a rank prints: classifies new lines, and returns the last lines for exit reports."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from megascale.core.rules import LineClassifier, RuleSet, prefilter_of, rule_set
from megascale.job import TrainingJob
from megascale.job.log_rules import log_rules

ALERT_PREFIX: Final = b"megascale.alert "
_BUILTIN: Final = rule_set()
_ALERTS: Final = re.compile(rb"^" + re.escape(ALERT_PREFIX) + rb".*$", re.MULTILINE)
_READ_BYTES: Final = 256 * 1024
_BACKLOG_BYTES: Final = 4 << 20
_NEWEST_BYTES: Final = 64 * 1024
_BURST_S: Final = 0.1
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


class CpuBudget:
    """Bounds the CPU time of work that comes in turns, to a share of the time that passes.

    Args:
        share: CPU seconds per second; unused time is kept, up to 0.1 CPU seconds.
        wall: seconds that pass.
    """

    def __init__(self, share: float, wall: Callable[[], float] = time.monotonic) -> None:
        self._share, self._wall = share, wall
        self._at, self._left_s = wall(), _BURST_S

    def refill(self) -> float:
        """Return the CPU seconds that may be spent now; negative after they were overspent."""
        now = self._wall()
        self._left_s = min(_BURST_S, self._left_s + self._share * (now - self._at))
        self._at = now
        return self._left_s

    def spend(self, cpu_s: float) -> None:
        self._left_s -= cpu_s


class LogTail:
    """Keeps the newest output of a rank, to be classified and for exit reports. `feed` may run in a thread.

    Attributes:
        skipped_bytes: data that was not classified, because there was too much of it; grows.
    """

    def __init__(self, rules: RuleSet = _BUILTIN, cpu: Callable[[], float] = time.thread_time) -> None:
        self.skipped_bytes = 0
        self._lock = threading.Lock()
        self._backlog, self._newest = bytearray(), bytearray()
        self._rest = b""
        self._cpu = cpu
        self._prefilter = prefilter_of(rules)
        self._classifier = LineClassifier(rules)

    def feed(self, raw: bytes) -> None:
        """Take what the rank printed; of a longer backlog than 4 MiB only the end is kept."""
        with self._lock:
            self._newest += raw
            if len(self._newest) > 2 * _NEWEST_BYTES:
                del self._newest[:-_NEWEST_BYTES]
            self._backlog += raw
            if len(self._backlog) > _BACKLOG_BYTES:
                self.skipped_bytes += len(self._backlog) - _READ_BYTES
                del self._backlog[:-_READ_BYTES]
                self._rest = b""

    def take_skipped(self) -> int:
        """Return `skipped_bytes` and set it to 0."""
        with self._lock:
            skipped, self.skipped_bytes = self.skipped_bytes, 0
        return skipped

    def new_matches(self, cpu_s: float = math.inf) -> list[LineMatch]:
        """Return new lines whose rule has an action: at most 16 per call, alerts of the rank first.

        Args:
            cpu_s: CPU time after which the rest of what was read is left out, except for alerts.
        """
        lines = self._new_lines()
        alerts = [_alert(line) for line in _ALERTS.findall(lines)[:_MATCHES_PER_READ]]
        return (alerts + self._classified(lines, cpu_s))[:_MATCHES_PER_READ]

    def _classified(self, lines: bytes, cpu_s: float) -> list[LineMatch]:
        matches: list[LineMatch] = []
        began = self._cpu()
        for line, done in self._prefilter.lines(lines, self._classifier):
            if line and not line.startswith(ALERT_PREFIX):
                verdict = self._classifier.feed(line[:_LINE_BYTES].decode(errors="replace"))
                if verdict.rule is not None and verdict.action != "none" and verdict.scope != "consequence":
                    matches.append(LineMatch(verdict.rule, verdict.category, verdict.action, verdict.line))
            if len(matches) == _MATCHES_PER_READ:
                break  # more are not reported
            if done < len(lines) and self._cpu() - began >= cpu_s:
                with self._lock:
                    self.skipped_bytes += len(lines) - done
                break
        return matches

    def _new_lines(self) -> bytes:
        """Return whole lines of at most 256 KiB that were not returned before."""
        with self._lock:
            raw = bytes(self._backlog[:_READ_BYTES])
            del self._backlog[:_READ_BYTES]
            lines, newline, rest = (self._rest + raw).rpartition(b"\n")
            self._rest = rest[-_LINE_BYTES:]
        return lines + newline

    def last_lines(self, count: int) -> list[str]:
        """Return the last `count` non-empty lines, at most 64 KiB, without MegaScale's alert lines."""
        with self._lock:
            raw = bytes(self._newest[-min(_NEWEST_BYTES, count * _LINE_BYTES) :])
        lines = [line for line in raw.splitlines() if line.strip() and not line.startswith(ALERT_PREFIX)]
        return [line.decode(errors="replace")[:_LINE_BYTES] for line in lines[-count:]]


def _alert(line: bytes) -> LineMatch:
    try:
        data = json.loads(line[len(ALERT_PREFIX) :])
        return LineMatch(str(data["kind"]), "framework", "alert", str(data["message"]))
    except (ValueError, KeyError, TypeError):
        return LineMatch("unreadableAlert", "framework", "alert", line.decode(errors="replace")[:_LINE_BYTES])
