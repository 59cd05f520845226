"""How much of a flood of log lines is read and classified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import logtail, ranks
from megascale.agent.config import AgentConfig
from megascale.agent.logtail import CpuBudget, LogTail
from megascale.agent.ranklog import RankLog
from megascale.agent.ranks import Ranks

XID = b"NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus.\n"
ALERT = b'megascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n'


class Cpu:
    """CPU time that grows by one second with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_lines_beyond_the_budget_are_counted_and_alerts_among_them_are_told(tmp_path: Path) -> None:
    tail = LogTail(cpu=Cpu())
    tail.feed(XID * 10 + ALERT + XID)
    found = tail.new_matches(cpu_s=3.0)
    assert [match.rule for match in found] == ["nonFiniteLoss", "xid-79", "xid-79", "xid-79"]
    assert tail.skipped_bytes == 8 * len(XID) + len(ALERT)
    tail.feed(XID)
    assert len(tail.new_matches(cpu_s=3.0)) == 1  # later lines are classified again
    assert tail.skipped_bytes == 8 * len(XID) + len(ALERT)


def test_without_time_a_sample_is_classified(tmp_path: Path) -> None:
    tail = LogTail(cpu=Cpu())
    tail.feed(XID * 10)
    assert len(tail.new_matches(cpu_s=0.0)) == 1
    assert tail.skipped_bytes == 9 * len(XID)


def test_of_a_long_backlog_only_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtail, "_READ_BYTES", 1000)
    monkeypatch.setattr(logtail, "_BACKLOG_BYTES", 4000)
    tail = LogTail()
    tail.feed(XID + b"." * 3000 + b"\n")
    assert len(tail.new_matches()) == 1
    assert tail.skipped_bytes == 0
    backlog = len(XID) + 3001 - 1000
    more = b"." * 6000 + b"\n" + XID
    tail.feed(more)
    assert [match.rule for match in tail.new_matches()] == ["xid-79"]
    assert (tail.take_skipped(), tail.skipped_bytes) == (backlog + len(more) - 1000, 0)


def test_a_budget_is_a_share_of_the_time_that_passes_and_keeps_little() -> None:
    now = 100.0
    budget = CpuBudget(0.25, wall=lambda: now)
    assert budget.refill() == pytest.approx(0.1)
    budget.spend(0.3)
    assert budget.refill() == pytest.approx(-0.2)
    now += 1.0
    assert budget.refill() == pytest.approx(0.05)
    now += 100.0
    assert budget.refill() == pytest.approx(0.1)


def test_a_flood_is_an_alert_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now)
    config = AgentConfig.local(tmp_path, "n0")
    node = Ranks(config, cast(Any, None), cast(Any, None), lambda _exit: None)
    logs = [RankLog(tmp_path / f"rank-{number}.log", LogTail()) for number in range(2)]
    tails = [log.tail for log in logs]
    for number, log in enumerate(logs):
        log.close()
        launch = cast(Any, type("Launch", (), {"rank": number, "attempt": 4}))
        node._ranks[number] = ranks.Rank(launch, cast(Any, None), cast(Any, None), log)
    assert node.log_matches() == []
    tails[0].skipped_bytes, tails[1].skipped_bytes = 700, 300
    (match,) = node.log_matches()
    assert (match.rule, match.category, match.action, match.attempt) == ("logFlood", "framework", "alert", 4)
    assert match.line == "1000 bytes of the logs of ranks 0, 1 were not classified: they print too much"
    tails[1].skipped_bytes = 5
    now += 59.0
    assert node.log_matches() == []
    now += 2.0
    assert node.log_matches()[0].line.startswith("5 bytes of the logs of ranks 1 were not")
    logs[0].unwritten_bytes = 9
    now += 61.0
    (match,) = node.log_matches()
    assert match.rule == "logNotWritten"
    assert match.line.startswith("9 bytes of the logs of ranks 0 could not be written")
