"""Which nodes get ranks, and in which order.

Ranks are numbered node after node, so the nodes of one pipeline stage are consecutive: its data-parallel
groups, the heaviest traffic between nodes, stay inside one network domain where it is large enough, and
stages that exchange activations are neighbours. Surviving nodes keep their place: they hold its snapshots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from megascale.core.state.context import StepContext, natural_key

Domain = tuple[str, ...]
"""Label values of a node, from the widest to the narrowest domain; "" = not known."""


def idle_nodes(ctx: StepContext) -> list[str]:
    """Usable nodes that hold no ranks."""
    held = set(ctx.record.assignment)
    return [node for node in ctx.usable() if node not in held]


def choose_nodes(ctx: StepContext, count: int) -> tuple[str, ...] | None:
    """`count` usable nodes in rank order, None if there are fewer."""
    if len(ctx.live.nodes) < count:
        return None
    usable = ctx.usable()
    if len(usable) < count:
        return None
    before = ctx.record.assignment[:count]
    if len(before) == count and set(before).issubset(usable):
        return before
    keys = ctx.policy.topology_keys[::-1]
    domains = {name: tuple(node.labels.get(key, "") for key in keys) for name, node in ctx.live.nodes.items()}
    if set(before).isdisjoint(usable):
        return tuple(arranged(usable, domains, count, max(1, count // ctx.policy.pipeline)))
    return tuple(refilled(before, usable, domains, count))


def refilled(
    before: Sequence[str], usable: Sequence[str], domains: Mapping[str, Domain], count: int
) -> list[str]:
    """`before` with its missing nodes replaced by the nearest idle ones, extended to `count`."""
    kept = set(before).intersection(usable)
    idle = [name for name in usable if name not in kept]
    filled: list[str] = []
    for index in range(count):
        place = before[index] if index < len(before) else filled[-1]
        if place not in kept or index >= len(before):
            distances = [_distance(domains, place, name) for name in idle]
            place = idle.pop(distances.index(min(distances)))
        filled.append(place)
    return filled


def _distance(domains: Mapping[str, Domain], one: str, other: str) -> int:
    """How many levels of the network, counted from the widest, two nodes do not share."""
    left, right = domains.get(one, ()), domains.get(other, ())
    shared = 0
    for a, b in zip(left, right, strict=False):
        if not a or a != b:
            break
        shared += 1
    return max(len(left), len(right)) - shared


def arranged(usable: Sequence[str], domains: Mapping[str, Domain], count: int, block: int) -> list[str]:
    """A first placement: blocks of `block` nodes (a pipeline stage each) inside one domain where one fits.

    Each block takes the domain that it fills best; what fits nowhere is taken from the largest remainders.
    """
    left: dict[Domain, list[str]] = defaultdict(list)
    for name in usable:
        left[domains.get(name, ())].append(name)
    blocks: list[tuple[Domain, list[str]]] = []
    while len(blocks) * block + block <= count:
        fitting = [domain for domain in left if len(left[domain]) >= block]
        if not fitting:
            break
        domain = min(fitting, key=lambda d: (len(left[d]), d))
        blocks.append((domain, left[domain][:block]))
        left[domain] = left[domain][block:]
    chosen = [
        name
        for _, names in sorted(blocks, key=lambda item: (item[0], natural_key(item[1][0])))
        for name in names
    ]
    for domain in sorted((d for d in left if left[d]), key=lambda d: (-len(left[d]), d)):
        chosen += left[domain][: count - len(chosen)]
    return chosen
