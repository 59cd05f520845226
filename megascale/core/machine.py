"""The state machine: takes one event at a time, returns the effects it decides. See `megascale.core`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from megascale.core.act import commands, graceful_stop, node_changes
from megascale.core.act.lifecycle import stopped
from megascale.core.contract import events as ev
from megascale.core.contract.codec import Json, decode, encode
from megascale.core.contract.effects import Effect
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Timer
from megascale.core.handlers import (
    diagnosis,
    effect_results,
    exits,
    hardware_events,
    membership,
    numerics,
    progress,
    stragglers,
)
from megascale.core.handlers.start import on_driver_paused, on_driver_started
from megascale.core.state.context import StepContext, natural_key
from megascale.core.state.packing import packed, unpacked
from megascale.core.state.record import Incident, JobRecord, JobState, Live, NodeStatus, Spec

CORE_VERSION: Final = 4
_TAKEN_WHEN_FINISHED: Final = (
    ev.EffectDone,
    ev.EffectFailed,
    ev.FleetRefused,
    ev.DriverStarted,
    ev.ManualCommand,
)
_TELEMETRY: Final = (ev.NodeReport, ev.JobReport, ev.SegmentTimes, ev.Evidence, ev.SnapshotReady)
_LEARNT_AGAIN: Final = frozenset(
    {"ledger", "clock", "saves", "deadlines", "best_step", "outstanding", "spares", "assignment", "pending"}
)
"""Fields of the record that change with time and reports, or only with an effect."""
_INCIDENT: Final = tuple(field.name for field in dataclasses.fields(Incident))
_STORED_AT_ONCE: Final = tuple(
    field.name for field in dataclasses.fields(JobRecord) if field.name not in _LEARNT_AGAIN
)


class Core:
    """Owns the state of one job. Not thread safe; `now` is Unix seconds and is clamped to never go back.

    The first `step` of every driver life must be `DriverStarted`.

    Attributes:
        must_store: the last event changed what a successor cannot learn again, so the snapshot has to be
            stored before anything else happens.
    """

    def __init__(self, policy: Policy, record: JobRecord | None = None) -> None:
        self.policy = policy
        self.record = record or JobRecord()
        self.live = Live()
        self._now = 0.0
        self.must_store = False

    def step(self, event: ev.Event, now: float, waited_s: float = 0.0) -> list[Effect]:
        """Take one event; the shell carries out the effects in order, once the job record is written.

        Args:
            waited_s: how long the event waited to be taken in. Later ones may wait still, so no timer that
                is due since the event came fires, and no node counts as silent since then.
        """
        self._now = max(self._now, now)
        ctx = StepContext(self.record, self.live, self.policy, self._now, self._now - waited_s)
        before = _decided(self.record, event)
        if self.record.state is not JobState.FINISHED or isinstance(event, _TAKEN_WHEN_FINISHED):
            _HANDLERS[type(event)](ctx, event)
            _run_timers(ctx)
        self.policy = ctx.policy
        self.must_store = bool(ctx.effects) or before != _decided(self.record, event)
        return ctx.effects

    def next_deadline(self) -> float | None:
        """When a Tick is due if no event comes before; None when nothing waits for time."""
        times = list(self.record.deadlines.values())
        if self.live.silence:
            times.append(self.live.silence[0][0])
        return min(times, default=None) if self.record.state is not JobState.FINISHED else None

    def snapshot(self) -> Json:
        """The job record as JSON values, from which a successor goes on; at most 64 KiB as text."""
        held = set(self.record.assignment)
        idle = (
            n for n, node in self.live.nodes.items() if node.status is not NodeStatus.GONE and n not in held
        )
        finished = self.record.state is JobState.FINISHED
        self.record.spares = () if finished else tuple(sorted(idle, key=natural_key))
        data = encode(self.record)
        return packed(data, self.record) if isinstance(data, dict) else data

    def start_over(self) -> Json:
        """Forget what agents reported, as the restart of a driver does; returns the snapshot that is left.

        The next `step` must be `DriverStarted`.
        """
        snapshot = self.snapshot()
        fresh = Core.restore(self.policy, snapshot)
        self.record, self.live, self._now = fresh.record, fresh.live, 0.0
        return snapshot

    @property
    def is_undisturbed(self) -> bool:
        """Whether ranks train and nothing is under way, so that `start_over` costs nothing but statistics."""
        record = self.record
        return (
            record.state is JobState.RUNNING
            and record.incident is None
            and not record.pending
            and not self.live.exits
        )

    @classmethod
    def restore(cls, policy: Policy, snapshot: Json) -> Core:
        """The inverse of `snapshot`.

        Raises:
            ValueError: the snapshot is of another shape.
        """
        if isinstance(snapshot, dict):
            snapshot = unpacked(snapshot)
        return cls(policy, decode(JobRecord, snapshot))


def _decided(record: JobRecord, event: ev.Event) -> tuple[object, ...]:
    """What is compared before and after an event to find out whether the record has to be stored.

    For the events of every heartbeat, as much as costs nothing: whatever else they change, they decide.
    """
    incident = record.incident
    outline = (
        record.state,
        record.attempt,
        record.plan,
        len(record.pending),
        incident and incident.id,
        len(record.incidents),
        record.spec.previous,
    )
    if isinstance(event, _TELEMETRY):
        return outline
    return (*outline, *(_kept(getattr(record, name)) for name in _STORED_AT_ONCE))


def _kept(value: object) -> object:
    """A copy to compare with later; what the value holds is replaced where it changes, not changed."""
    if isinstance(value, dict):
        return tuple((key, tuple(item) if type(item) is list else item) for key, item in value.items())
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Incident):
        return (*map(_kept, (getattr(value, name) for name in _INCIDENT)),)
    return dataclasses.replace(value) if isinstance(value, Spec) else value


def _run_timers(ctx: StepContext) -> None:
    membership.check_silence(ctx)
    due = sorted((at, name) for name, at in ctx.record.deadlines.items() if at <= ctx.seen_until)
    for _, name in due:
        if ctx.record.deadlines.pop(name, None) is not None:
            _TIMERS[name](ctx)


def _on_kill_overdue(ctx: StepContext) -> None:
    """The Kill was not answered in time: go on with the nodes that are there."""
    stopped(ctx)


def _on_probe(ctx: StepContext, event: ev.ProbeResult) -> None:
    ctx.record.pending.pop(event.effect_id, None)
    if event.effect_id in ctx.live.probes:
        stragglers.on_probe(ctx, event)
    else:
        membership.on_probe(ctx, event)


def _ignore(ctx: StepContext, event: Any) -> None:  # noqa: ANN401
    """Tick: the timers run after every event anyway."""


_TIMERS: Final[dict[Timer, Callable[[StepContext], None]]] = {
    Timer.STARTUP: effect_results.on_startup_overdue,
    Timer.KILL: _on_kill_overdue,
    Timer.HANG: diagnosis.on_stall,
    Timer.EVIDENCE: diagnosis.judge,
    Timer.FLAP: diagnosis.on_flap_over,
    Timer.SAVE: graceful_stop.on_save_overdue,
    Timer.LEAVING: exits.on_leaving_overdue,
    Timer.SHRINK: effect_results.reassemble,
    Timer.ACQUIRE_RETRY: effect_results.reassemble,
    Timer.ACQUIRED: effect_results.on_acquired_overdue,
    Timer.RECONNECT: effect_results.reassemble,
    Timer.CHECK: numerics.on_check_overdue,
    Timer.APPLY_SPEC: commands.on_spec_due,
    Timer.GROW: node_changes.on_grow_due,
    Timer.BACKOFF: effect_results.reassemble,
}

_HANDLERS: Final[dict[type, Callable[[StepContext, Any], None]]] = {
    ev.DriverStarted: on_driver_started,
    ev.DriverPaused: on_driver_paused,
    ev.NodeJoined: membership.on_joined,
    ev.NodeReport: progress.on_report,
    ev.JobReport: progress.on_job_report,
    ev.SegmentTimes: stragglers.on_segments,
    ev.NodeGone: membership.on_gone,
    ev.RankExited: exits.on_exited,
    ev.LogMatch: hardware_events.on_log,
    ev.HardwareEvent: hardware_events.on_hardware,
    ev.ProbeResult: _on_probe,
    ev.Evidence: diagnosis.on_evidence,
    ev.SnapshotReady: progress.on_snapshot,
    ev.CommitDone: progress.on_commit,
    ev.FleetRefused: effect_results.on_refused,
    ev.ManualCommand: commands.on_command,
    ev.SpecChanged: commands.on_spec_changed,
    ev.EffectDone: effect_results.on_done,
    ev.EffectFailed: effect_results.on_failed,
    ev.Tick: _ignore,
}
