"""Logging of drivers, agents, node checks and the operator.

Every line carries the process's component, job, attempt, rank and node: as words before the message on a
workstation, as fields of one JSON object per line on a cluster.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from megascale.observe.text import shown_text

MESSAGE_CHARACTERS: Final = 4096
TRACEBACK_CHARACTERS: Final = 16384
_FIELDS: Final = ("job", "attempt", "rank", "node")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LogContext:
    """Fields of every line of this process, None where one does not apply; changed as it learns them.

    A call gives its own with `extra`, as in `log.warning(..., extra={"rank": 3})`.

    Attributes:
        component: driver, agent, diagnose or operator.
    """

    component: str
    job: str | None = None
    attempt: int | None = None
    rank: int | None = None
    node: str | None = None


class ContextFilter(logging.Filter):
    """Adds the fields of a context to records that do not have them."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def filter(self, record: logging.LogRecord) -> bool:
        for name in ("component", *_FIELDS):
            if getattr(record, name, None) is None:
                setattr(record, name, getattr(self._context, name))
        return True


class PlainFormatter(logging.Formatter):
    """`2026-11-30 09:12:01 WARNING driver job=q attempt=2: the message`, a traceback on the lines below."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in _fields_of(record).items())
        line = (
            f"{at} {record.levelname} {getattr(record, 'component', record.name)}{fields}: {_message(record)}"
        )
        traceback = _traceback(self, record)
        return shown_text(f"{line}\n{traceback}" if traceback else line)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, component, logger, the fields, message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "component": getattr(record, "component", None),
            "logger": record.name,
            **_fields_of(record),
            "message": _message(record),
        }
        traceback = _traceback(self, record)
        if traceback:
            line["traceback"] = traceback
        return json.dumps(line)


def configure_logs(
    context: LogContext, *, as_json: bool, stream: TextIO | None = None, level: int = logging.INFO
) -> None:
    """Send everything that this process logs, and the error it ends with, to `stream` (default: stderr)."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(ContextFilter(context))
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    sys.excepthook = log_last_error


def log_last_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log an unhandled exception as the process's last line, in the format of the others."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    log.critical("ended by an error: %r", error, exc_info=(kind, error, traceback))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: getattr(record, name, None) for name in _FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[: MESSAGE_CHARACTERS - 3]}..."


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The end of it, where the error is, if it is long."""
    if not record.exc_info:
        return ""
    text = formatter.formatException(record.exc_info)
    return text if len(text) <= TRACEBACK_CHARACTERS else f"...{text[3 - TRACEBACK_CHARACTERS :]}"
