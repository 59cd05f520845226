"""Handles wrong numbers: NaN, and jumps of loss or gradient norm that last (ByteRobust: from 5x on).

The first time a node is suspected: the job rolls back to before the jump, and distrusts a checkpoint that it
loaded shortly before. Steps are repeated exactly, so the same jump at the same step comes from code or data,
and a person is paged.
"""

from __future__ import annotations

import math
from typing import Final

from megascale.core.act import node_checks
from megascale.core.act.exclusion import exclude
from megascale.core.act.lifecycle import assemble
from megascale.core.act.lineage import taint
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract import effects as fx
from megascale.core.contract.codec import Json
from megascale.core.contract.events import RankProgress
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import NODE_CHECKS
from megascale.core.contract.vocabulary import Action, Cause, Detector
from megascale.core.decide.replay import plan_replay
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.incidents import Fault, note_aside, note_suppressed
from megascale.core.state.record import JobState, NumericsWatch
from megascale.core.stats.spikes import JUMP, Anomaly

_CONFIRMED_STEPS: Final = {"not_a_number": 2, "jump": 5, "spike": 5}
_SAME_STEP: Final = 5
_TOO_OFTEN: Final = 3
_DAY_S: Final = 86400.0


def observe(ctx: StepContext, rank: RankProgress) -> None:
    """Judge the loss and gradient norm of a step, once per step; values of every rank that knows them."""
    watch = ctx.live.numerics
    if rank.loss is None or rank.step <= watch.step or ctx.record.state is not JobState.RUNNING:
        return
    watch.step = rank.step
    anomaly = _judge(watch, rank)
    if anomaly is None:
        watch.kind, watch.count, watch.good_step = None, 0, rank.step
        return
    kind = _kind(anomaly)
    if kind != watch.kind:
        watch.kind, watch.count, watch.reason = kind, 0, anomaly.reason
    watch.count += 1
    if watch.count == _CONFIRMED_STEPS[kind]:
        _act(ctx, watch)


def _judge(watch: NumericsWatch, rank: RankProgress) -> Anomaly | None:
    loss = watch.loss.observe(rank.step, math.nan if rank.loss is None else rank.loss)
    # A gradient norm that is no number may be a step that mixed precision skips: the loss decides.
    finite = rank.grad_norm is not None and math.isfinite(rank.grad_norm)
    norm = watch.grad_norm.observe(rank.step, rank.grad_norm or 0.0) if finite else None
    return loss or norm


def _kind(anomaly: Anomaly) -> str:
    """The kind of anomaly; a spike below 5x may come from the data, so it is recorded and not acted on."""
    if anomaly.kind == "spike" and anomaly.value > JUMP * anomaly.reference:
        return "jump"
    return anomaly.kind


def _act(ctx: StepContext, watch: NumericsWatch) -> None:
    record = ctx.record
    first_step = watch.good_step + 1
    again = abs(first_step - record.anomaly_step) <= _SAME_STEP
    fault = Fault(
        Cause.NUMERICS,
        f"{watch.reason}, for {watch.count} steps" + ("; at the same step as before" if again else ""),
        at=ctx.now,
        commits=_loaded_shortly_before(ctx, first_step),
        evidence=_how_to_find_the_node(ctx) if again else (),
    )
    if watch.kind == "spike" or (watch.kind == "jump" and again):
        note_aside(ctx, fault, Action.NONE, "training goes on: code or data may be behind it")
        if again:
            ctx.emit(fx.Page, f"{fault.reason}: code or data, not a machine; training goes on")
        return
    if ctx.is_shadowed(Detector.NUMERICS):
        note_suppressed(ctx, Detector.NUMERICS, fault, "roll back")
        return
    record.anomaly_step = first_step
    taint(ctx, first_step - 1)
    respond(ctx, fault)
    _count_roll_back(ctx, replay=() if again else _how_to_find_the_node(ctx))


def _count_roll_back(ctx: StepContext, replay: tuple[str, ...]) -> None:
    """Page the third roll-back within a day: steps are made in between, so no restart budget stops them."""
    record = ctx.record
    record.roll_backs = [at for at in record.roll_backs if at > ctx.now - _DAY_S][-_TOO_OFTEN:]
    record.roll_backs.append(ctx.now)
    if len(record.roll_backs) != _TOO_OFTEN or record.incident is None:
        return
    reason = "; ".join((f"wrong numbers {_TOO_OFTEN} times within a day", *replay))
    record.incident.add_evidence(reason)
    ctx.emit(fx.Page, reason, incident=record.incident.id)


def on_checked(ctx: StepContext, convicted: Json) -> None:
    """Exclude the nodes that the check convicted, then launch the ranks again."""
    incident, found = ctx.record.incident, convicted if isinstance(convicted, dict) else {}
    node_checks.end(ctx)
    if ctx.record.state is not JobState.ASSEMBLING or incident is None:
        return
    ctx.record.ledger.switch(GoodputPhase.RECOVERY, ctx.now, cause=incident.cause)
    guilty = [name for name in ctx.record.assignment if name in found]
    if not guilty:
        incident.add_evidence("the checks found no node that computes wrong numbers")
        assemble(ctx)
        return
    ctx.record.roll_backs.clear()
    for name in guilty[1:]:
        exclude(ctx, name, incident, reason=f"{name} computes wrong numbers: {found[name]}")
    reason = f"{guilty[0]} computes wrong numbers: {found[guilty[0]]}; {incident.reason}"
    reattribute(
        ctx,
        Fault(
            Cause.HARDWARE,
            reason,
            node=guilty[0],
            at=ctx.now,
            action="replace_node",
            rule=NODE_CHECKS,
        ),
    )


def on_check_overdue(ctx: StepContext) -> None:
    """Some nodes did not answer the check: they are not convicted."""
    on_checked(ctx, {})


def _how_to_find_the_node(ctx: StepContext) -> tuple[str, ...]:
    """How a person finds the node by a replay in two phases; () where the layout allows none."""
    nodes, model_nodes = ctx.record.assignment, ctx.policy.model_nodes
    if len(nodes) <= model_nodes or len(nodes) % model_nodes:
        return ()
    return (plan_replay(nodes, pipeline_nodes=model_nodes).instructions(),)


def _loaded_shortly_before(ctx: StepContext, first_step: int) -> tuple[Commit, ...]:
    loaded = ctx.record.lineage.get(ctx.record.attempt)
    if loaded is None or first_step - loaded.step > ctx.policy.distrust_steps:
        return ()
    return (loaded,)
