"""What a person is told, from status documents alone."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from megascale.cli.view import LineView, LiveView, News, one_line, render, render_summary, stage_durations


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


def text_of(renderable: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=110).print(renderable)
    return stream.getvalue()


def test_the_live_view_shows_everything_a_person_watches() -> None:
    text = text_of(render(document()))
    for shown in (
        *("12 / 200", "2.5000", "8,192", "40.0%", "measured on this CPU", "93.0%", "step 10", "attempt 2"),
        *("node-0", "node-2", "unknown", "spare", "SIGKILL"),
    ):
        assert shown in text


def test_a_document_without_figures_yet_is_shown() -> None:
    empty = dict.fromkeys(("loss", "stepSeconds", "tokensPerSecond", "mfu", "goodput", "checkpointStep"))
    bare = document(**empty, state="assembling", nodes=[], incidents=[])
    assert "nodes are starting" in text_of(render(bare))
    assert one_line(bare) == "quickstart assembling  step 12/200  restarts 1"


def test_a_loss_that_is_no_number_is_shown_as_such() -> None:
    assert "loss nan" in one_line(document(loss="nan"))


def test_an_incident_is_news_once_when_it_opens_and_once_when_it_ends() -> None:
    news = News()
    assert news.of(document())[0] == "incident i-1: rank 1 on node-1 was killed by SIGKILL"
    assert news.of(document()) == []
    (line,) = news.of(document(incidents=[incident(outcome="recovered")]))
    assert "recovered" in line
    assert "0.50 s from fault to first new step" in line
    assert news.of(document(incidents=[incident(outcome="recovered")])) == []


def test_each_alert_is_news_once() -> None:
    news = News()
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
    with LineView(stream) as view:
        view.update(document())
        view.update(document(step=13))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("incident i-1")
    assert sum("step 1" in line for line in lines) == 1


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
    view = LiveView() if terminal else LineView(stream)
    with view:
        view.update(hostile_document())
        view.note(EVIL)
        view.summary(hostile_document())
    out = stream.getvalue()
    assert "[/red]" in out
    assert "\\x1b]0;owned" in out
    assert not re.search("[\x1b\x07\x9b\u202e]", out)
    assert "\nincident i-9" not in out
