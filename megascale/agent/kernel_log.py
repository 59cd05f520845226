"""Reads the node's kernel log and turns lines that match a log rule into hardware events."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import time
from collections import deque
from pathlib import Path
from typing import Final

from megascale.core.rules import LineClassifier, RuleSet, Verdict, rule_set
from megascale.rpc import megascale_pb2 as pb

log = logging.getLogger(__name__)

_BUILTIN: Final = rule_set()
_READ_BYTES: Final = 64 * 1024
_LINE_BYTES: Final = 2000
_RECORDS: Final = 256
_FINDINGS: Final = 16
_REPEAT_S: Final = 10.0
_REMEMBERED: Final = 64
_XID: Final = re.compile(r"xid-(\d+)")
_PREFIX: Final = re.compile(r"^\d+,\d+,\d+,[^;]*;")
_SIGNS: Final = {"gpu": "ecc", "network": "nic", "storage": "disk", "host": "memory"}
_SIGN_OF_RULE: Final = (("nvlink", "nvlink"), ("pcie", "pcie"), ("thermal", "thermal"))


class KernelLog:
    """Follows /dev/kmsg, or a text file, from its end.

    If the log cannot be opened or read, a warning is logged and there are no events.
    """

    def __init__(self, path: Path, rules: RuleSet = _BUILTIN) -> None:
        self._descriptor = -1
        self._rest = b""
        self._classifier = LineClassifier(rules)
        self._recent: deque[tuple[str, float]] = deque(maxlen=_REMEMBERED)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._is_device = stat.S_ISCHR(os.fstat(self._descriptor).st_mode)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            log.warning("%s: %s; hardware events of this node are not seen", path, error.strerror)

    def new_events(self) -> list[pb.HardwareEvent]:
        """Return hardware events of new lines: at most 16 per call, the same line at most once in 10 s."""
        found: list[pb.HardwareEvent] = []
        try:
            lines = self._new_lines()
        except OSError as error:
            log.warning("the kernel log cannot be read any more: %s", error)
            self.close()
            return []
        for line in lines:
            verdict = self._classifier.feed(line[:_LINE_BYTES].decode(errors="replace"))
            if len(found) < _FINDINGS and _concerns_hardware(verdict) and self._is_news(verdict):
                found.append(_event_of(verdict))
        return found

    def _new_lines(self) -> list[bytes]:
        if self._descriptor < 0:
            return []
        if self._is_device:
            return self._records()
        *lines, self._rest = (self._rest + os.read(self._descriptor, _READ_BYTES)).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        return lines

    def _records(self) -> list[bytes]:
        """Read records of /dev/kmsg; keeps each one's first line, without the continuation lines."""
        records: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(records) < _RECORDS:
                try:
                    records.append(os.read(self._descriptor, _READ_BYTES).split(b"\n", 1)[0])
                except BrokenPipeError:  # records were overwritten before they were read
                    continue
        return records

    def _is_news(self, verdict: Verdict) -> bool:
        now = time.monotonic()
        key = f"{verdict.rule}:{verdict.line}"
        if any(known == key and now - at < _REPEAT_S for known, at in self._recent):
            return False
        self._recent.append((key, now))
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _concerns_hardware(verdict: Verdict) -> bool:
    return verdict.category in _SIGNS and verdict.action != "none" and verdict.scope != "consequence"


def _event_of(verdict: Verdict) -> pb.HardwareEvent:
    rule = verdict.rule or ""
    xid = _XID.search(rule)
    sign = next((sign for part, sign in _SIGN_OF_RULE if part in rule), _SIGNS[verdict.category])
    event = pb.HardwareEvent(
        sign="xid" if xid else sign,
        text=_PREFIX.sub("", verdict.line),
        at=time.time(),
        rule=rule,
        category=verdict.category,
        action=verdict.action,
    )
    if xid:
        event.code = int(xid[1])
    return event
