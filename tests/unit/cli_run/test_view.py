"""What a person is told, from status documents alone."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megascale.cli.view import LineView, LiveView, News, one_line, render, render_summary, stage_durations
from megascale.observe.rundir import RunDir


def incident(**changes: Any) -> dict[str, Any]:
    milestones = {
        "fault": 100.0,
        "detected": 100.02,
        "decided": 100.02,
        "stopped": 100.05,
        "firstStep": 100.5,
    }
    return {
        "id": "i-1",
        "cause": "crash",
        "reason": "rank 1 on node-1 was killed by SIGKILL",
        "node": "node-1",
        "rank": 1,
        "action": "restart_in_place",
        "decision": "the cheapest cure",
        "outcome": "open",
        "evidence": [],
        "detectionSeconds": 0.02,
        "recoverySeconds": 0.5,
        "milestones": {name: {"at": at, "source": "observed"} for name, at in milestones.items()},
    } | changes


def document(**changes: Any) -> dict[str, Any]:
    rank = {"rank": 0, "pid": 7, "step": 12, "phase": "forward", "stepSeconds": 0.25, "mfu": 0.4}
    return {
        "job": "quickstart",
        "state": "running",
        "attempt": 2,
        "step": 12,
        "steps": 200,
        "loss": 2.5,
        "stepSeconds": 0.25,
        "tokensPerSecond": 8192.0,
        "mfu": 0.4,
        "peakFlops": 1e11,
        "goodput": 0.93,
        "restarts": 1,
        "checkpointStep": 10,
        "nodes": [
            {"name": "node-0", "status": "ready", "role": "training", "ranks": [rank]},
            {"name": "node-2", "status": "unknown", "role": "spare", "ranks": []},
        ],
        "incidents": [incident()],
        "alerts": [],
    } | changes


RUN = RunDir(Path("runs/quickstart"))


def text_of(renderable: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=110).print(renderable)
    return stream.getvalue()


def test_the_live_view_shows_everything_a_person_watches() -> None:
    text = text_of(render(document()))
    for shown in (
        *("12 / 200", "2.5000", "8,192", "40.0%", "of this CPU's peak", "93.0%", "step 10", "attempt 2"),
        *("node-0", "node-2", "unknown", "spare", "SIGKILL"),
    ):
        assert shown in text


def test_a_document_without_figures_yet_is_shown() -> None:
    empty = dict.fromkeys(("loss", "stepSeconds", "tokensPerSecond", "mfu", "goodput", "checkpointStep"))
    bare = document(**empty, state="assembling", nodes=[], incidents=[])
    assert "nodes are starting" in text_of(render(bare))
    assert one_line(bare) == "quickstart assembling  step 12/200  1 restart"


def test_a_loss_that_is_no_number_is_shown_as_such() -> None:
    assert "loss nan" in one_line(document(loss="nan"))


def test_an_incident_is_news_once_when_it_opens_and_once_when_it_ends() -> None:
    news = News(RUN)
    assert news.of(document())[0] == "incident i-1: rank 1 on node-1 was killed by SIGKILL"
    assert news.of(document()) == []
    (line,) = news.of(document(incidents=[incident(outcome="recovered")]))
    assert "recovered" in line
    assert "0.50 s from fault to first new step" in line
    assert news.of(document(incidents=[incident(outcome="recovered")])) == []


def test_each_alert_is_news_once() -> None:
    news = News(RUN)
    alert = {"time": 5.0, "message": "step 3: No space left"}
    quiet = document(incidents=[], alerts=[alert])
    assert news.of(quiet) == ["alert: step 3: No space left"]
    assert news.of(quiet) == []


def test_stage_durations_add_up_from_the_fault_to_the_last_stage() -> None:
    durations = stage_durations(incident())
    assert [label for label, _ in durations] == ["detect", "decide", "stop", "first step"]
    assert sum(seconds for _, seconds in durations) == pytest.approx(0.5)


def test_the_summary_names_state_costs_and_incidents() -> None:
    summary = document(
        state="completed", goodputSeconds={"productive": 50.0, "lostWork": 2.5}, reason="all done"
    )
    text = text_of(render_summary(summary))
    for shown in ("completed", "productive 50.0 s", "lostWork 2.5 s", "restart in place", "0.50 s"):
        assert shown in text


def test_plain_lines_are_flushed_as_they_come() -> None:
    stream = io.StringIO()
    with LineView(stream, RUN) as view:
        view.update(document())
        view.update(document(step=13))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("incident i-1")
    assert sum("step 1" in line for line in lines) == 1


def test_lines_repeat_nothing_that_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("megascale.cli.view.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    view = LineView(stream, RUN)
    waiting = document(state="assembling", incidents=[], step=0)
    for changed in ({}, {}, {"state": "running"}, {"state": "running"}, {"state": "running", "step": 9}):
        view.update(waiting | changed)
        clock[0] += 60.0
    said = [line.split("  ")[0:2] for line in stream.getvalue().splitlines()]
    assert said == [
        ["quickstart assembling", "step 0/200"],
        ["quickstart running", "step 0/200"],
        ["quickstart running", "step 9/200"],
    ]


def test_what_is_left_is_shown_while_steps_come() -> None:
    shown = document(steps=20_000, microBatches={"perRank": 2, "samples": 4})
    assert "1 h 23 min left  1 restart" in one_line(shown)
    text = text_of(render(shown))
    assert "1 h 23 min" in text
    assert "2 x 4 samples" in text
    assert "left" not in one_line(shown | {"state": "saving"})
    assert one_line(shown | {"restarts": 2}).endswith("2 restarts")


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_or_folded_on_a_narrow_terminal(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(render(document(microBatches={"perRank": 2, "samples": 4})))
    console.print(render_summary(document(state="completed", incidents=[incident(outcome="recovered")])))
    text = stream.getvalue()
    assert "\u2026" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) == width
    for whole in (
        *("node-0  ready    training  0     forward", "step time  MFU", "40.0% of this CPU's peak"),
        *("restart in place", "detected", "recovered", "0.020 s", "0.50 s"),
    ):
        assert any(whole in line for line in lines), whole


def test_what_is_not_known_of_a_script_without_steps_is_not_shown() -> None:
    plain = document(reportsSteps=False, step=0, loss=None, mfu=None, checkpointStep=None)
    for text in (text_of(render(plain)), one_line(plain), text_of(render_summary(plain))):
        assert "at most 93.0%" in text
        for absent in ("/ 200", "/200", "loss ", "MFU - ", "of this CPU's peak", "checkpoint  "):
            assert absent not in text


def test_the_basis_of_an_mfu_is_only_named_beside_one() -> None:
    assert "of this CPU's peak" not in text_of(render_summary(document(mfu=None)))
    assert "of this CPU's peak" in text_of(render_summary(document()))


def test_an_incident_is_told_with_the_last_lines_of_the_log_and_its_path() -> None:
    crashed = incident(attempt=2, evidence=["Traceback", "ValueError: bad sample"])
    lines = News(RUN).of(document(incidents=[crashed]))
    assert lines[2:5] == [
        "  | Traceback",
        "  | ValueError: bad sample",
        "  log: runs/quickstart/logs/attempt-2/rank-1.log",
    ]
    assert not [line for line in News(RUN).of(document(incidents=[incident(rank=None)])) if "log:" in line]


def test_a_failed_end_says_where_to_look() -> None:
    crashed = incident(attempt=2, evidence=["ValueError: bad sample"])
    for state, shown in (("failed", True), ("completed", False)):
        stream = io.StringIO()
        LineView(stream, RUN).summary(document(state=state, incidents=[incident(id="i-0"), crashed]))
        text = stream.getvalue()
        assert ("what i-1 left:" in text) == shown
        assert ("| ValueError: bad sample" in text) == shown
        assert ("rank-1.log" in text) == shown


EVIL = "[/red]\x1b]0;owned\x07\x9b2J\u202e"


def hostile_document() -> dict[str, Any]:
    rank = {"rank": 0, "pid": 7, "step": 12, "phase": EVIL, "stepSeconds": 0.25, "mfu": 0.4}
    found = incident(reason=EVIL, decision=EVIL, action=EVIL, outcome=EVIL, node=EVIL, evidence=[EVIL])
    return document(
        job=EVIL,
        state=EVIL,
        loss=EVIL,
        reason=EVIL,
        nodes=[{"name": EVIL, "status": EVIL, "role": EVIL, "ranks": [rank]}],
        incidents=[found],
        alerts=[{"time": 5.0, "message": EVIL + "\nincident i-9: forged"}],
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_hostile_texts_are_shown_and_do_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    if terminal:
        monkeypatch.setattr("sys.stdout", stream)
    view = LiveView(RUN) if terminal else LineView(stream, RUN)
    with view:
        view.update(hostile_document())
        view.note(EVIL)
        view.summary(hostile_document())
    out = stream.getvalue()
    assert "[/red]" in out
    assert "\\x1b]0;owned" in out
    assert not re.search("[\x1b\x07\x9b\u202e]", out)
    assert "\nincident i-9" not in out
