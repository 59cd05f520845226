from __future__ import annotations

import math
from pathlib import Path

import pytest

from megascale.observe.rankfile import FILE_BYTES, Control, Phase, RankFile, RankRecord


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ranks" / "node-0-0.rank"


def test_a_reader_sees_what_the_writer_published(path: Path) -> None:
    writer = RankFile.create(path, RankRecord(term=2, attempt=3, rank=7))
    reader = RankFile.open(path)
    writer.update(step=41, phase=Phase.BACKWARD, loss=2.5, collective="all_reduce")
    record = reader.read()
    assert (record.term, record.attempt, record.rank) == (2, 3, 7)
    assert (record.step, record.phase, record.loss, record.collective) == (
        41,
        Phase.BACKWARD,
        2.5,
        "all_reduce",
    )
    assert math.isnan(record.grad_norm)


def test_a_record_that_is_being_written_is_not_returned(path: Path) -> None:
    writer = RankFile.create(path, RankRecord(step=1))
    reader = RankFile.open(path)
    assert reader.read().step == 1
    writer._memory[64] |= 1  # the writer died inside a write: the sequence number stays odd
    writer._memory[96:104] = (99).to_bytes(8, "little")
    assert reader.read().step == 1
    writer.update(step=2)
    assert reader.read().step == 2


def test_control_goes_from_agent_to_rank(path: Path) -> None:
    rank = RankFile.create(path, RankRecord())
    agent = RankFile.open(path)
    assert rank.control is Control.NONE
    agent.control = Control.SAVE_AND_EXIT
    assert rank.control is Control.SAVE_AND_EXIT


def test_every_request_counts_also_one_that_asks_for_the_same_again(path: Path) -> None:
    rank = RankFile.create(path, RankRecord())
    agent = RankFile.open(path)
    assert rank.requests == 0
    agent.control = Control.SAVE
    agent.control = Control.SAVE
    assert (rank.requests, rank.control) == (2, Control.SAVE)
    rank._memory[12:16] = b"\xff" * 4
    agent.control = Control.SAVE
    assert rank.requests == 0


def test_creating_again_forgets_control_and_last_words(path: Path) -> None:
    old = RankFile.create(path, RankRecord())
    old.control = Control.SAVE
    old.write_exit_report({"type": "ValueError", "message": "bad"})
    fresh = RankFile.create(path, RankRecord(attempt=2))
    assert fresh.control is Control.NONE
    assert fresh.requests == 0
    assert fresh.read_exit_report() is None


def test_long_last_words_are_cut_but_keep_their_type(path: Path) -> None:
    rank_file = RankFile.create(path, RankRecord())
    rank_file.write_exit_report({"type": "ValueError", "message": "x" * 100_000, "detail": {"step": 3}})
    words = rank_file.read_exit_report()
    assert words is not None
    assert words["type"] == "ValueError"
    assert 0 < len(words["message"]) <= 1000


def test_another_file_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(FILE_BYTES))
    with pytest.raises(ValueError, match="not a rank file"):
        RankFile.open(path)
