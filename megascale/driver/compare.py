"""Checks whether a lagging node is slow by comparing its matrix product rate with nodes of the same job."""

from __future__ import annotations

import asyncio
import statistics
from typing import Final

from megascale.core.contract import effects as fx
from megascale.driver.links import Links, NodeLostError, OrderFailedError
from megascale.driver.wire import measure_order
from megascale.fleet.base import Health

PEERS: Final = 4
_SECONDS: Final = 2.0
_DEADLINE_S: Final = 60.0
_SLOW: Final = 1.15
_SOUND: Final = 1.05


async def compare_speed(links: Links, probe: fx.Probe, term: int) -> Health | None:
    """Measure the node and up to `PEERS` peers at the same time and compare their speeds.

    All of them are training meanwhile, so absolute speeds mean nothing. The node is unhealthy if the peers'
    median is at least 1.15 times its speed, and healthy if it is at most 1.05 times its speed.

    Returns:
        None if the ratio lies between these limits, or if the node or all peers could not be measured.
    """
    suspect = links.get(probe.node)
    if suspect is None:
        return None
    peers = [link.node for link in links if link.node != probe.node and link.attempt == suspect.attempt]
    nodes = [probe.node, *peers[:PEERS]]
    speeds = await asyncio.gather(*(_speed(links, node, probe, term) for node in nodes))
    others = [speed for speed in speeds[1:] if speed > 0.0]
    if not others or speeds[0] <= 0.0:
        return None
    ratio = statistics.median(others) / speeds[0]
    detail = f"its matrix products run at {1.0 / ratio:.0%} of the speed of {len(others)} peers"
    if ratio >= _SLOW:
        return Health(healthy=False, detail=detail)
    return Health(healthy=True, detail=detail) if ratio <= _SOUND else None


async def _speed(links: Links, node: str, probe: fx.Probe, term: int) -> float:
    order = measure_order(term, probe, _SECONDS, _DEADLINE_S)
    try:
        return (await links.order(node, order, _DEADLINE_S + 1.0)).gemm_speed
    except (OrderFailedError, NodeLostError, TimeoutError):
        return 0.0
