"""The state machine: one event at a time in, effects out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from megascale.core import commands, diagnosis, exits, membership, progress
from megascale.core import effects as fx
from megascale.core import events as ev
from megascale.core.codec import Json, decode, encode
from megascale.core.lifecycle import assemble, finish, replenish, stopped
from megascale.core.policy import Policy
from megascale.core.recovery import Fault, respond
from megascale.core.state import Live, Node, NodeStatus, Record, Stage
from megascale.core.turn import Turn

CORE_VERSION: Final = 1
_EFFECTS: Final = {kind.__name__: kind for kind in fx.Effect.__args__}
_RETRY_LIMIT_S: Final = 60.0
_TAKEN_WHEN_FINISHED: Final = (ev.EffectDone, ev.DriverStarted, ev.ManualCommand)


class Core:
    """Owns the state of one job. Not thread safe; `now` is Unix seconds and is clamped to never go back.

    The first `step` of every driver life must be `DriverStarted`.
    """

    def __init__(self, policy: Policy, record: Record | None = None) -> None:
        self.policy = policy
        self.record = record or Record()
        self.live = Live()
        self._now = 0.0

    def step(self, event: ev.Event, now: float) -> list[fx.Effect]:
        """Take in one event; the effects are to be performed in order, after the record is written."""
        self._now = max(self._now, now)
        turn = Turn(self.record, self.live, self.policy, self._now)
        if self.record.stage is not Stage.FINISHED or isinstance(event, _TAKEN_WHEN_FINISHED):
            _HANDLERS[type(event)](turn, event)
            _run_timers(turn)
        self.policy = turn.policy
        return turn.effects

    def next_deadline(self) -> float | None:
        """When a Tick is due if nothing else happens; may be earlier than anything that follows from it."""
        times = list(self.record.deadlines.values())
        if self.live.silence:
            times.append(self.live.silence[0][0])
        return min(times, default=None) if self.record.stage is not Stage.FINISHED else None

    def snapshot(self) -> Json:
        """The part of the state that a successor needs, as JSON values."""
        return encode(self.record)

    @classmethod
    def restore(cls, policy: Policy, snapshot: Json) -> Core:
        """The inverse of `snapshot`.

        Raises:
            ValueError: the snapshot is of another shape.
        """
        return cls(policy, decode(Record, snapshot))


def _run_timers(turn: Turn) -> None:
    membership.check_silence(turn)
    due = sorted((at, name) for name, at in turn.record.deadlines.items() if at <= turn.now)
    for _, name in due:
        if turn.record.deadlines.pop(name, None) is not None:
            _TIMERS[name](turn)


def _on_driver_started(turn: Turn, event: ev.DriverStarted) -> None:
    """Issue pending effects again; nodes in use are unknown until they report."""
    record, live = turn.record, turn.live
    record.term = event.term
    record.ledger.start(turn.now)
    turn.effects += [decode(_EFFECTS[p.kind], p.data) for p in record.pending.values()]
    grace = max(0.0, turn.policy.reconnect_grace_s - turn.policy.silence_s)
    for name in record.assignment:
        if name not in record.excluded:
            live.nodes[name] = Node("", NodeStatus.UNKNOWN, turn.now + grace)
            live.silence.append((turn.now + grace + turn.policy.silence_s, name))
    live.silence.sort()
    live.step, live.progress_at = record.best_step, turn.now
    if record.stage is Stage.ASSEMBLING:
        assemble(turn)
    elif record.stage is not Stage.FINISHED:
        replenish(turn)


def _on_effect_done(turn: Turn, event: ev.EffectDone) -> None:
    pending = turn.record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    if pending.kind == "Kill" and turn.record.stage is Stage.STOPPING:
        unreaped = event.detail.get("unreaped", [])
        stopped(turn, tuple(str(name) for name in unreaped) if isinstance(unreaped, list) else ())
    elif pending.kind == "Launch" and turn.record.incident:
        turn.record.incident.mark("launched", turn.now)


def _on_effect_failed(turn: Turn, event: ev.EffectFailed) -> None:
    pending = turn.record.pending.pop(event.effect_id, None)
    if pending is not None:
        exits.on_effect_failed(turn, event, pending.kind)


def _on_refused(turn: Turn, event: ev.FleetRefused) -> None:
    """Back off and ask again; give up waiting only when the job cannot run without."""
    record = turn.record
    pending = record.pending.pop(event.effect_id, None)
    if pending is None or pending.kind != "Acquire":
        return
    count = pending.data.get("count", 0)
    record.outstanding = max(0, record.outstanding - (count if isinstance(count, int) else 0))
    record.refusals += 1
    if record.refusals == 1:
        turn.emit(fx.Page, f"the fleet refused a node: {event.reason}")
    if record.refusals >= turn.policy.acquire_tries and record.stage is Stage.ASSEMBLING:
        finish(turn, "failed", f"no nodes after {record.refusals} tries: {event.reason}")
        return
    delay = min(_RETRY_LIMIT_S, turn.policy.acquire_retry_s * 2 ** min(record.refusals - 1, 6))
    turn.set_deadline("acquireRetry", delay)


def _on_startup_overdue(turn: Turn) -> None:
    live, record = turn.live, turn.record
    late = [node for node in record.assignment if node not in live.milestones.first_step]
    bound, names = f"{turn.policy.startup_s:g} s", ", ".join(late[:5])
    reason = f"no first step within {bound} (health.startupSeconds); waiting for {names}"
    respond(turn, Fault("launch_failed", reason, node=late[0] if len(late) == 1 else "", at=turn.now))


def _on_kill_overdue(turn: Turn) -> None:
    """No answer to Kill: whoever has not answered by now is left behind."""
    stopped(turn, ())


def _on_acquired_overdue(turn: Turn) -> None:
    turn.record.outstanding = 0
    turn.drop_pending(fx.Acquire)
    _reassemble(turn)


def _reassemble(turn: Turn) -> None:
    if turn.record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        replenish(turn)


def _ignore(turn: Turn, event: Any) -> None:  # noqa: ANN401
    """Tick, and answers that only the log needs."""


_TIMERS: Final[dict[str, Callable[[Turn], None]]] = {
    "startup": _on_startup_overdue,
    "kill": _on_kill_overdue,
    "hang": diagnosis.on_stall,
    "evidence": diagnosis.judge,
    "flap": diagnosis.on_flap_over,
    "save": commands.on_save_overdue,
    "shrink": _reassemble,
    "acquireRetry": _reassemble,
    "acquired": _on_acquired_overdue,
}

_HANDLERS: Final[dict[type, Callable[[Turn, Any], None]]] = {
    ev.DriverStarted: _on_driver_started,
    ev.NodeJoined: membership.on_joined,
    ev.NodeReport: progress.on_report,
    ev.JobReport: progress.on_job_report,
    ev.NodeGone: membership.on_gone,
    ev.RankExited: exits.on_exited,
    ev.LogMatch: _ignore,
    ev.HardwareEvent: _ignore,
    ev.ProbeResult: membership.on_probe,
    ev.Evidence: diagnosis.on_evidence,
    ev.SnapshotReady: _ignore,
    ev.CommitDone: progress.on_commit,
    ev.FleetRefused: _on_refused,
    ev.ManualCommand: commands.on_command,
    ev.SpecChanged: commands.on_spec_changed,
    ev.EffectDone: _on_effect_done,
    ev.EffectFailed: _on_effect_failed,
    ev.Tick: _ignore,
}
