from __future__ import annotations

import json
import random

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megascale.engine.bridge import cpu_bridge
from megascale.engine.rng import restore_rng, rng_state, seed_all
from megascale.model.layout import RankCoordinates

PLACE = RankCoordinates(tensor=0, data=0, pipeline=0)


def draw() -> list[float]:
    """One number from each generator a rank has."""
    with get_cuda_rng_tracker().fork():
        tracked = float(torch.cuda.get_rng_state().sum())
    return [random.random(), float(np.random.normal()), float(torch.rand(())), tracked]


def test_generators_go_on_where_they_were_saved() -> None:
    with cpu_bridge():
        seed_all(3, PLACE)
        draw()
        saved = json.loads(json.dumps(rng_state()))
        expected = draw()
        seed_all(4, PLACE)
        assert draw() != expected
        restore_rng(saved)
        assert draw() == expected


def test_seeds_differ_between_replicas_and_tensor_peers_share_all_but_the_tracker() -> None:
    with cpu_bridge():
        drawn = []
        for place in (
            PLACE,
            RankCoordinates(tensor=0, data=1, pipeline=0),
            RankCoordinates(tensor=1, data=0, pipeline=0),
        ):
            seed_all(3, place)
            drawn.append(draw())
    first, replica, peer = drawn
    assert all(mine != other for mine, other in zip(first[:3], replica[:3], strict=True))
    assert first[:3] == peer[:3]
    assert first[3] != peer[3]
