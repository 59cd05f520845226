"""How a rank turns its agent's requests into votes."""

from __future__ import annotations

from pathlib import Path

import pytest

from megascale.engine.loop import Loop
from megascale.observe.rankfile import Control, RankFile, RankRecord

SAVE, LEAVE, NOTHING = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]


@pytest.fixture
def agent(tmp_path: Path) -> RankFile:
    return RankFile.create(tmp_path / "0", RankRecord())


@pytest.fixture
def rank(agent: RankFile) -> Loop:
    loop = Loop.__new__(Loop)  # of the parts of a loop, votes need these two
    loop._rank_file, loop._requests = RankFile.open(agent.path), 0
    return loop


def test_every_request_to_save_is_voted_for_once(rank: Loop, agent: RankFile) -> None:
    votes = [rank._votes()]
    for _ in range(2):
        agent.control = Control.SAVE
        votes += [rank._votes(), rank._votes()]
    assert votes == [NOTHING, SAVE, NOTHING, SAVE, NOTHING]


def test_a_later_request_takes_the_place_of_one_that_was_not_voted_for(rank: Loop, agent: RankFile) -> None:
    agent.control = Control.SAVE
    agent.control = Control.SAVE_AND_EXIT
    assert [rank._votes(), rank._votes()] == [LEAVE, NOTHING]
