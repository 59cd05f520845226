"""Hash collisions of flows on a switch's uplinks (MegaScale 3.6): a placement's cost before it is made.

Equal-cost routing hashes each flow to one of the uplinks. An uplink that carries more flows than its speed
allows slows all of them down. The paper halves the ports of the downlinks so that an uplink has twice a
downlink's speed: two flows may share one, and collisions of two do no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True, slots=True)
class Collisions:
    """What is to be expected of flows over uplinks.

    Attributes:
        flows: flows that leave the switch at once; uplinks: where they may go.
        slowed_share: expected share of flows that share an uplink with more than it can carry.
        mean_speed: expected speed of a flow, 1.0 = line rate of its downlink.
    """

    flows: int
    uplinks: int
    slowed_share: float
    mean_speed: float


def collisions(flows: int, uplinks: int, speedup: float = 1.0) -> Collisions:
    """Expected collisions of flows at line rate, hashed evenly.

    Args:
        speedup: speed of an uplink over that of a downlink.

    Raises:
        ValueError: no uplinks, or a speedup that is not positive.
    """
    if uplinks < 1 or flows < 0 or speedup <= 0:
        raise ValueError(f"{flows} flows over {uplinks} uplinks of speed {speedup:g}")
    if flows == 0:
        return Collisions(0, uplinks, 0.0, 1.0)
    slowed = speed = 0.0
    chance = 1 / uplinks
    for others in range(flows):
        likely = comb(flows - 1, others) * chance**others * (1 - chance) ** (flows - 1 - others)
        share = min(1.0, speedup / (others + 1))
        speed += likely * share
        slowed += likely * (share < 1)
    return Collisions(flows, uplinks, slowed, speed)


def ring_flows(switches: Sequence[str], nics_per_node: int = 1) -> dict[str, int]:
    """Flows that leave each switch when nodes talk to the next in rank order, the last to the first.

    Args:
        switches: top-of-rack switch of each node, in rank order.
        nics_per_node: network cards of a node on that switch, one flow each.
    """
    following = [*switches[1:], *switches[:1]]
    crossing = Counter(here for here, there in zip(switches, following, strict=True) if here != there)
    return {switch: crossing[switch] * nics_per_node for switch in dict.fromkeys(switches)}
