"""A job that slowly gets slower: told to a person, since restarting does not cure code (MegaScale 6.3)."""

from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract.events import RankProgress
from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import JobState


def observe(ctx: StepContext, rank: RankProgress) -> None:
    """Compare the pace of a newly completed step with the best that the job has held."""
    if ctx.record.state is not JobState.RUNNING or rank.step_seconds <= 0:
        return
    anomaly = ctx.live.speed.observe(rank.step, 1.0 / rank.step_seconds)
    if anomaly is not None:
        fault = Fault(Cause.SLOW, anomaly.reason, at=ctx.now)
        incident = note_aside(
            ctx, fault, Action.NONE, "MFU decays with the pace; a person looks for the cause"
        )
        ctx.emit(fx.Page, f"MFU decays: {anomaly.reason}", incident=incident.id)
