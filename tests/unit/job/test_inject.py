"""Faults given on the command line."""

from __future__ import annotations

import pytest

from megascale.errors import InputError
from megascale.job import Fault, parse_inject


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill-rank:rank=1,step=60", Fault(kind="killRank", rank=1, step=60)),
        ("stop-rank:step=40, rank=0, point=commit", Fault(kind="stopRank", rank=0, step=40, point="commit")),
        ("kill-node:node=node-1,step=5", Fault(kind="killNode", node="node-1", step=5)),
        ("slow-rank:rank=1,step=7", Fault(kind="slowRank", rank=1, step=7)),
        ("kill-driver:step=7", Fault(kind="killDriver", step=7)),
    ],
)
def test_faults(text: str, fault: Fault) -> None:
    assert parse_inject(text) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one of kill-rank, kill-node"),
        ("killrank:rank=1,step=2", r"unknown fault \"killrank\".*did you mean kill-rank"),
        ("kill-rank", "step is required, expected a whole number"),
        ("kill-rank:step=3", "rank is required for kind killRank"),
        ("kill-rank:rank=x,step=3", 'rank got "x", expected a whole number'),
        ("kill-rank:rank=1,step=0", "step got 0, expected a whole number from 1"),
        ("kill-rank:rank=-1,step=3", 'rank got "-1", expected a whole number'),
        ("kill-rank:rank=1,stpe=3", r"unknown field \"stpe\".*did you mean step"),
        ("kill-rank:rank=1,rank=2,step=3", "rank is given twice"),
        ("kill-rank:rank,step=3", 'got "rank", expected field=value'),
        ("kill-node:rank=1,step=3", "rank has no meaning for kind killNode; node is required"),
        ("kill-rank:rank=1,step=3,point=end", 'point got "end", expected one of step, save, commit'),
    ],
)
def test_wrong_faults_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_inject(text)
    assert f'--inject "{text}"' in str(caught.value)
