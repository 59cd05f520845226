"""Whether nodes that were lost together share a cause, such as a switch or a rack.

A lost node is judged only when the next attempt is launched: by then the losses of its neighbours are known.
"""

from __future__ import annotations

from typing import Final

from megascale.core.state.context import StepContext

ANYWHERE: Final = "the cluster"


def domain_of(ctx: StepContext, name: str) -> str | None:
    """The narrowest known network domain of the node, None if it has none of the labels."""
    node = ctx.live.nodes.get(name)
    labels = node.labels if node is not None else {}
    return next((f"{key}={labels[key]}" for key in ctx.policy.topology_keys if labels.get(key)), None)


def is_shared(ctx: StepContext, name: str) -> bool:
    """Whether the lost node was lost together with many others."""
    shared, loss = ctx.record.shared, ctx.record.lost[name]
    if loss.shared:
        return True
    seen_at = max(shared.get(domain, 0.0) for domain in (loss.domain, ANYWHERE) if domain)
    return abs(loss.at - seen_at) <= ctx.policy.correlate_s
