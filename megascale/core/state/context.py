"""What one step of the core works on: the state, the policy, the time, and the effects decided so far."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from megascale.core.contract import effects as fx
from megascale.core.contract.codec import Json, decode, encode
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Detector, Timer
from megascale.core.state.record import JobRecord, JobState, Live, Node, NodeStatus, Pending, shortened

E = TypeVar("E", bound=fx.Effect)
_REASON_KEPT: Final = 480
_LEFT_OUT_KEPT: Final = 64
_KINDS: Final[dict[str, Any]] = {kind.__name__: kind for kind in fx.Effect.__args__}


@dataclass(slots=True)
class StepContext:
    """Passed to every handler. `now` never goes backwards from step to step.

    Attributes:
        seen_until: every event that had arrived by then is taken in; timers and silence are judged by it,
            so that a driver that is behind does not act on what an event that still waits would disprove.
    """

    record: JobRecord
    live: Live
    policy: Policy
    now: float
    seen_until: float
    effects: list[fx.Effect] = field(default_factory=list)

    def emit(self, kind: type[E], reason: str, **fields: Any) -> E:  # noqa: ANN401 - the effect's own fields
        """Decide an effect: it gets the next id and stays pending until it is answered."""
        effect_id = f"e-{self.record.next_effect}"
        self.record.next_effect += 1
        effect = kind(effect_id=effect_id, reason=shortened(reason, _REASON_KEPT), **fields)
        self.effects.append(effect)
        self.record.pending[effect_id] = self._pending(effect)
        return effect

    def _pending(self, effect: fx.Effect) -> Pending:
        """The effect as JSON, without long lists of nodes that the job record holds anyway."""
        data = cast(dict[str, Json], encode(effect))
        data.pop("avoid", None)
        nodes: tuple[str, ...] = getattr(effect, "nodes", ())
        without = set(self.record.assignment).difference(nodes)
        if not nodes or len(nodes) + len(without) != len(self.record.assignment):
            return Pending(type(effect).__name__, data)
        data["nodes"] = []
        # A successor then asks nodes that are gone, too, and waits for them as for any that does not answer.
        left_out = sorted(without) if len(without) <= _LEFT_OUT_KEPT else []
        return Pending(type(effect).__name__, data, tuple(left_out))

    def pending_effects(self) -> list[fx.Effect]:
        """Every effect that was not answered yet, in the order in which it was decided."""
        return [self._restored(pending) for pending in self.record.pending.values()]

    def drop_unknown_pending(self) -> list[str]:
        """Forget effects that another version decided and this one cannot read; returns their kinds."""
        unknown = {i: p.kind for i, p in self.record.pending.items() if not self._is_readable(p)}
        self.record.pending = {i: p for i, p in self.record.pending.items() if i not in unknown}
        return list(unknown.values())

    def _is_readable(self, pending: Pending) -> bool:
        try:
            self._restored(pending)
        except (KeyError, ValueError):
            return False
        return True

    def _restored(self, pending: Pending) -> fx.Effect:
        data = dict(pending.data)
        if pending.without is not None:
            data["nodes"] = [node for node in self.record.assignment if node not in pending.without]
        if pending.kind == fx.Acquire.__name__:
            data["avoid"] = list[Json](sorted(self.record.excluded))
        return cast(fx.Effect, decode(_KINDS[pending.kind], data))

    def drop_pending(self, *kinds: type[fx.Effect]) -> None:
        """Forget unanswered effects of these kinds: their answer no longer matters."""
        names = {kind.__name__ for kind in kinds}
        self.record.pending = {k: p for k, p in self.record.pending.items() if p.kind not in names}

    def is_pending(self, kind: type[fx.Effect]) -> bool:
        return any(pending.kind == kind.__name__ for pending in self.record.pending.values())

    def set_deadline(self, timer: Timer, seconds: float) -> None:
        """Arm the timer, or move it: it is due in `seconds` from now."""
        self.record.deadlines[timer] = self.now + seconds

    def clear_deadline(self, *timers: Timer) -> None:
        for name in timers:
            self.record.deadlines.pop(name, None)

    def is_excluded(self, node: str) -> bool:
        return node in self.record.excluded

    def usable(self) -> list[str]:
        """Nodes that could get ranks now, in natural order."""
        record, ready = self.record, NodeStatus.READY
        out = record.excluded.keys() | record.lost.keys() | record.draining.keys()
        names = [name for name, node in self.live.nodes.items() if node.status is ready and name not in out]
        return sorted(names, key=natural_key)

    def node(self, name: str, incarnation: str | None) -> Node | None:
        """The live node if `incarnation` is its current one; a stale agent gets None.

        None on either side is an incarnation not known (yet), which fits any.
        """
        node = self.live.nodes.get(name)
        if node is None or (node.incarnation and incarnation and node.incarnation != incarnation):
            return None
        return node

    def ranks_active(self) -> bool:
        """Whether ranks of the current attempt are supposed to be running."""
        return self.record.state in (
            JobState.LAUNCHING,
            JobState.RUNNING,
            JobState.DIAGNOSING,
            JobState.SAVING,
        )

    def steps_are_known(self) -> bool:
        """Whether steps are a measure of progress: a plain script may report none."""
        return self.policy.reports_steps or self.record.best_step > 0

    def ran_s(self) -> float:
        """Seconds since the launch of the current attempt."""
        return self.now - self.record.launched_at

    def holds_ranks(self, node: str) -> bool:
        """Whether the node is one that the current attempt runs on."""
        return self.ranks_active() and node in self._assigned()

    def _assigned(self) -> frozenset[str]:
        """The assignment as a set, kept until the assignment changes: every heartbeat asks for it."""
        names, kept = self.record.assignment, self.live.assigned
        if kept[0] is not names:
            kept = self.live.assigned = names, frozenset(names)
        return kept[1]

    def in_use(self, node: str) -> bool:
        """Whether ranks run on the node, or may still do so until they are stopped."""
        return node in self.record.assignment and (
            self.ranks_active() or self.record.state is JobState.STOPPING
        )

    def is_shadowed(self, detector: Detector) -> bool:
        """Whether the detector only records what it would do."""
        return detector in self.policy.shadow


@functools.lru_cache(maxsize=1 << 15)
def natural_key(name: str) -> tuple[str, int, str]:
    """Order node-2 before node-10."""
    head, _, tail = name.rpartition("-")
    return (head, int(tail), "") if tail.isdigit() else (name, -1, name)
