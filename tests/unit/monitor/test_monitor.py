"""The one-liners of a user's script: what they publish, and that they are nothing outside of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megascale import monitor
from megascale.observe.rankfile import Control, Phase, RankFile, RankRecord


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    monitor.reporter.cache_clear()
    yield
    monitor.reporter.cache_clear()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankFile:
    """The agent's end of the record of rank 0."""
    path = tmp_path / "runs" / "job" / "ranks" / "node-0-0.rank"
    file = RankFile.create(path, RankRecord(term=2, attempt=3, rank=0))
    monkeypatch.setenv("MEGASCALE_RANK_FILE", str(path))
    return file


def metrics(agent: RankFile) -> list[dict[str, object]]:
    text = (agent.path.parent.parent / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_outside_of_a_job_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGASCALE_RANK_FILE", raising=False)
    monitor.step(1, loss=2.0)
    monitor.metric("accuracy", 0.5)
    with monitor.phase("evaluation"):
        assert not monitor.stop_requested()


def test_a_step_reaches_the_agent_and_the_metrics(agent: RankFile) -> None:
    monitor.metric("accuracy", 0.25)
    monitor.step(1, loss=2.5, tokens=100)
    monitor.step(2, loss=float("nan"), grad_norm=0.5, tokens=200)
    record = agent.read()
    assert (record.term, record.attempt, record.step, record.tokens, record.grad_norm) == (2, 3, 2, 200, 0.5)
    assert record.step_seconds > 0
    assert 0 < record.first_step_at < record.progress_at
    assert record.phase == Phase.FORWARD
    first, second = metrics(agent)
    assert (first["step"], first["attempt"], first["loss"], first["accuracy"]) == (1, 3, 2.5, 0.25)
    assert (second["loss"], second["job"], "accuracy" in second) == (None, "job", False)


def test_only_rank_0_writes_metrics(agent: RankFile) -> None:
    agent.publish(RankRecord(attempt=3, rank=1))
    monitor.step(1, loss=2.5)
    assert agent.read().step == 1
    assert not (agent.path.parent.parent / "metrics.jsonl").exists()


def test_a_phase_block_restores_the_phase_before(agent: RankFile) -> None:
    monitor.step(1)
    with monitor.phase("evaluation"):
        assert agent.read().phase == Phase.EVALUATION
        monitor.step(2)
        assert agent.read().phase == Phase.EVALUATION
    assert agent.read().phase == Phase.FORWARD
    monitor.phase("data")
    assert agent.read().phase == Phase.DATA


def test_an_unknown_phase_is_refused_inside_and_outside_of_a_job() -> None:
    with pytest.raises(ValueError, match=r'phase "eval", expected one of startup, .*evaluation'):
        monitor.phase("eval")


def test_a_request_to_leave_is_seen(agent: RankFile) -> None:
    assert not monitor.stop_requested()
    agent.control = Control.SAVE
    assert not monitor.stop_requested()
    agent.control = Control.SAVE_AND_EXIT
    assert monitor.stop_requested()
