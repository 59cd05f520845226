from __future__ import annotations

import asyncio

import pytest

from megascale.agent.gemm_benchmark import node_speed


@pytest.mark.multiprocess
def test_this_node_has_a_speed_unless_there_is_no_time() -> None:
    async def scenario() -> tuple[float, float]:
        return await node_speed(0.05, 90.0), await node_speed(0.05, 0.01)

    found, none = asyncio.run(scenario())
    assert found > 0.1
    assert none == 0.0
