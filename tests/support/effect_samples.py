"""One effect of every kind with no field at its default, and another value for each of its fields.

Whoever carries out effects is given both: where nothing changes, the field is dropped on the way.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from megascale.core.contract import effects as fx
from megascale.core.contract.lineage import Commit

NODES = ("n0", "n1")
ATTEMPT = 4

EFFECTS: tuple[fx.Effect, ...] = (
    fx.Launch(
        "e-1", "why", ATTEMPT, NODES, Commit(20, 3), {3: Commit(10, 1), ATTEMPT: Commit(20, 3)},
        revision="r1", save_every_steps=7, tier="memory",
    ),
    fx.Kill("e-1", "why", ATTEMPT, NODES, 5.0),
    fx.CollectEvidence("e-1", "why", ATTEMPT, NODES, 5.0),
    fx.Probe("e-1", "why", "n0", 5.0),
    fx.CheckNodes("e-1", "why", NODES, 5.0),
    fx.SaveNow("e-1", "why", ATTEMPT, then_stop=True, deadline_s=5.0),
    fx.Acquire("e-1", "why", 2, ("n8",)),
    fx.Release("e-1", "why", "n0"),
    fx.RestartSlot("e-1", "why", "n0"),
    fx.Exclude("e-1", "why", "n0", "i-1"),
    fx.RequestQuarantine("e-1", "why", "n0", "i-1"),
    fx.Page("e-1", "why", "i-1"),
    fx.Finish("e-1", "why", "completed"),
)  # fmt: skip
_OTHER: dict[str, Any] = {
    "effect_id": "e-2",
    "reason": "another reason",
    "attempt": ATTEMPT + 1,
    "nodes": ("n0", "n1", "n2"),
    "resume": Commit(10, 1),
    "lineage": {ATTEMPT: None},
    "revision": "r2",
    "save_every_steps": 9,
    "tier": "durable",
    "deadline_s": 6.0,
    "node": "n1",
    "then_stop": False,
    "count": 1,
    "avoid": ("n9",),
    "incident": "i-2",
    "state": "failed",
}
CASES = [(effect, field.name) for effect in EFFECTS for field in fields(effect)]
IDS = [f"{type(effect).__name__}.{name}" for effect, name in CASES]


def with_other(effect: Any, name: str) -> Any:
    """The effect with another value of one field."""
    return replace(effect, **{name: _OTHER[name]})
