"""How much of a flood of log lines is read and classified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import logtail, ranks
from megascale.agent.config import AgentConfig
from megascale.agent.logtail import CpuBudget, LogTail
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
    log = tmp_path / "rank-0.log"
    log.write_bytes(XID * 10 + ALERT + XID)
    tail = LogTail(log, cpu=Cpu())
    found = tail.new_matches(cpu_s=3.0)
    assert [match.rule for match in found] == ["nonFiniteLoss", "xid-79", "xid-79", "xid-79"]
    assert tail.skipped_bytes == 8 * len(XID) + len(ALERT)
    log.write_bytes(log.read_bytes() + XID)
    assert len(tail.new_matches(cpu_s=3.0)) == 1  # later lines are classified again
    assert tail.skipped_bytes == 8 * len(XID) + len(ALERT)


def test_without_time_a_sample_is_classified(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(XID * 10)
    tail = LogTail(log, cpu=Cpu())
    assert len(tail.new_matches(cpu_s=0.0)) == 1
    assert tail.skipped_bytes == 9 * len(XID)


def test_of_a_long_backlog_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtail, "_READ_BYTES", 1000)
    monkeypatch.setattr(logtail, "_BACKLOG_BYTES", 4000)
    log = tmp_path / "rank-0.log"
    log.write_bytes(XID + b"." * 3000 + b"\n")
    tail = LogTail(log)
    assert len(tail.new_matches()) == 1
    assert (tail.skipped_bytes, tail._offset) == (0, 1000)
    log.write_bytes(log.read_bytes() + b"." * 6000 + b"\n" + XID)
    size = log.stat().st_size
    assert [match.rule for match in tail.new_matches()] == ["xid-79"]
    assert (tail.skipped_bytes, tail._offset) == (size - 2000, size)


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
    tails = [LogTail(tmp_path / f"rank-{number}.log") for number in range(2)]
    for number, tail in enumerate(tails):
        launch = cast(Any, type("Launch", (), {"rank": number, "attempt": 4}))
        node._ranks[number] = ranks.Rank(launch, cast(Any, None), cast(Any, None), tail)
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
