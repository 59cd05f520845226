"""One event's worth of work: the state, the time, and the effects decided so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from megascale.core import effects as fx
from megascale.core.codec import Json, encode
from megascale.core.policy import Policy
from megascale.core.state import Live, Node, NodeStatus, Pending, Record, Stage

E = TypeVar("E", bound=fx.Effect)


@dataclass(slots=True)
class Turn:
    """Passed to every handler. `now` never goes backwards between turns."""

    record: Record
    live: Live
    policy: Policy
    now: float
    effects: list[fx.Effect] = field(default_factory=list)

    def emit(self, kind: type[E], reason: str, **fields: Any) -> E:  # noqa: ANN401 - the effect's own fields
        """Decide an effect: it gets an id and stays pending until it is answered."""
        effect_id = f"e-{self.record.next_effect}"
        self.record.next_effect += 1
        effect = kind(effect_id=effect_id, reason=reason, **fields)
        self.effects.append(effect)
        data = cast(dict[str, Json], encode(effect))
        self.record.pending[effect_id] = Pending(kind.__name__, data)
        return effect

    def drop_pending(self, *kinds: type[fx.Effect]) -> None:
        """Forget unanswered effects of these kinds: their answer no longer matters."""
        names = {kind.__name__ for kind in kinds}
        self.record.pending = {k: p for k, p in self.record.pending.items() if p.kind not in names}

    def is_pending(self, kind: type[fx.Effect]) -> bool:
        return any(pending.kind == kind.__name__ for pending in self.record.pending.values())

    def set_deadline(self, name: str, seconds: float) -> None:
        """(Re)arm the named timer."""
        self.record.deadlines[name] = self.now + seconds

    def clear_deadline(self, *names: str) -> None:
        for name in names:
            self.record.deadlines.pop(name, None)

    def is_excluded(self, node: str) -> bool:
        return node in self.record.excluded

    def usable(self) -> list[str]:
        """Nodes that could get ranks now, in natural order."""
        names = (name for name, node in self.live.nodes.items() if node.status is NodeStatus.READY)
        return sorted((name for name in names if not self.is_excluded(name)), key=natural_key)

    def node(self, name: str, incarnation: str) -> Node | None:
        """The live node if `incarnation` is its current one; a stale agent gets None."""
        node = self.live.nodes.get(name)
        return node if node is not None and node.incarnation == incarnation else None

    def ranks_active(self) -> bool:
        """Whether ranks of the current attempt are supposed to be running."""
        return self.record.stage in (Stage.LAUNCHING, Stage.RUNNING, Stage.DIAGNOSING, Stage.SAVING)


def natural_key(name: str) -> tuple[str, int, str]:
    """Order node-2 before node-10."""
    head, _, tail = name.rpartition("-")
    return (head, int(tail), "") if tail.isdigit() else (name, -1, name)
