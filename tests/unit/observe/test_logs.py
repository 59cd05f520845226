"""Lines of drivers and agents, for people and for machines."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from megascale.observe.logs import (
    MESSAGE_CHARACTERS,
    TRACEBACK_CHARACTERS,
    LogContext,
    PlainFormatter,
    configure_logs,
    log_last_error,
)

log = logging.getLogger("megascale.somewhere")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    yield
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)


def lines(context: LogContext, *, as_json: bool) -> io.StringIO:
    stream = io.StringIO()
    configure_logs(context, as_json=as_json, stream=stream)
    return stream


def test_json_lines_have_the_context_as_fields() -> None:
    context = LogContext("driver", job="q")
    stream = lines(context, as_json=True)
    log.warning("%d nodes of %s", 3, "x")
    context.attempt = 2
    log.info("again", extra={"rank": 0, "node": "n7"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "WARNING", "component": "driver", "logger": "megascale.somewhere", "job": "q",
        "message": "3 nodes of x",
    }  # fmt: skip
    assert (second["level"], second["attempt"], second["rank"], second["node"]) == ("INFO", 2, 0, "n7")
    assert list(second)[:4] == ["time", "level", "component", "logger"]


def test_plain_lines_have_it_as_words() -> None:
    stream = lines(LogContext("agent", job="q", attempt=3, node="n0"), as_json=False)
    log.error("no space")
    log.warning("slow", extra={"rank": 5})
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR agent job=q attempt=3 node=n0: no space", first
    )
    assert second.endswith(" WARNING agent job=q attempt=3 rank=5 node=n0: slow")


def test_lines_of_other_libraries_get_it_too_and_what_is_not_asked_for_is_left_out() -> None:
    stream = lines(LogContext("driver", job="q"), as_json=True)
    logging.getLogger("grpc").warning("a stream broke")
    log.debug("not shown")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["logger"], line["job"], line["message"]) == ("grpc", "q", "a stream broke")


@pytest.mark.parametrize("as_json", [True, False])
def test_text_is_bounded(as_json: bool) -> None:
    stream = lines(LogContext("driver"), as_json=as_json)
    log.warning("x" * MESSAGE_CHARACTERS)
    log.warning("x" * (MESSAGE_CHARACTERS + 1))
    whole, cut = stream.getvalue().splitlines()
    assert whole.count("x") == MESSAGE_CHARACTERS
    assert cut.count("x") == MESSAGE_CHARACTERS - 3
    assert "xxx..." in cut


def fail(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize("length", [5, 2 * TRACEBACK_CHARACTERS])
def test_a_traceback_is_a_field_and_its_end_is_kept(length: int) -> None:
    stream = lines(LogContext("driver"), as_json=True)
    try:
        fail("y" * length + "the end")
    except ValueError:
        log.exception("it failed")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["message"] == "it failed"
    assert line["traceback"].endswith("the end")
    assert len(line["traceback"]) <= TRACEBACK_CHARACTERS
    assert line["traceback"].startswith("Traceback" if length == 5 else "...y")


def test_a_traceback_follows_a_plain_line() -> None:
    stream = lines(LogContext("driver"), as_json=False)
    try:
        fail("a defect")
    except ValueError:
        log.exception("it failed")
    text = stream.getvalue().splitlines()
    assert text[0].endswith("ERROR driver: it failed")
    assert text[1].startswith("Traceback")
    assert text[-1] == "ValueError: a defect"


PROGRAM = """
from megascale.observe.logs import LogContext, configure_logs
configure_logs(LogContext("driver", job="q"), as_json=True)
raise {error}
"""


def test_the_error_that_ends_a_process_is_its_last_line_and_its_code_is_1() -> None:
    program = PROGRAM.format(error="KeyError('a defect')")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["level"], line["job"]) == ("CRITICAL", "q")
    assert line["message"] == "ended by an error: KeyError('a defect')"
    assert "KeyError: 'a defect'" in line["traceback"]


def test_an_interrupt_is_no_error_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    stream = lines(LogContext("driver"), as_json=True)
    log_last_error(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue() == ""
    assert "KeyboardInterrupt" in capsys.readouterr().err


def test_plain_lines_do_not_steer_a_terminal() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "agent %s left", ("\x1b[2J\x9bn",), None)
    assert PlainFormatter().format(record).endswith(": agent \\x1b[2J\\x9bn left")
