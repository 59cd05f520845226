"""Hash collisions of flows on a switch's uplinks (MegaScale 3.6): a placement's cost before it is made.

Equal-cost routing hashes each flow to one of the uplinks. An uplink that carries more flows than its speed
allows slows all of them down. The paper halves the ports of the downlinks so that an uplink has twice a
downlink's speed: two flows may share one, and collisions of two do no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, log1p

from megascale.model.layout import Layout, RankCoordinates


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
    if uplinks == 1:
        share = min(1.0, speedup / flows)
        return Collisions(flows, uplinks, float(share < 1), share)
    slowed = speed = 0.0
    for others in range(flows):
        likely = _likelihood(others, flows - 1, 1 / uplinks)
        share = min(1.0, speedup / (others + 1))
        speed += likely * share
        slowed += likely * (share < 1)
    return Collisions(flows, uplinks, slowed, speed)


def _likelihood(hits: int, tries: int, chance: float) -> float:
    """Binomial, by logarithms: the coefficient of a thousand flows is no float."""
    coefficient = lgamma(tries + 1) - lgamma(hits + 1) - lgamma(tries - hits + 1)
    return exp(coefficient + hits * log(chance) + (tries - hits) * log1p(-chance))


def data_ring_flows(switches: Sequence[str], layout: Layout, gpus_per_node: int) -> dict[str, int]:
    """Flows that leave each switch when every rank sends to the next of its data-parallel ring.

    Args:
        switches: top-of-rack switch of each node, in the order of ranks; every GPU has a card of its own.

    Raises:
        ValueError: nodes and GPUs do not make the layout's ranks.
    """
    if len(switches) * gpus_per_node != layout.world_size:
        raise ValueError(f"{len(switches)} nodes x {gpus_per_node} GPUs are not {layout.world_size} ranks")
    leaving = Counter(dict.fromkeys(switches, 0))
    for rank in range(layout.world_size):
        own = RankCoordinates.of(rank, layout)
        following = layout.rank_of(own.tensor, (own.data + 1) % layout.data, own.pipeline)
        here, there = switches[rank // gpus_per_node], switches[following // gpus_per_node]
        leaving[here] += here != there
    return dict(leaving)
