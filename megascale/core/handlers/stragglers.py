"""Slow nodes: compared with stage peers over k of n windows, then probed, then replaced (design 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megascale.core.act.lifecycle import replenish
from megascale.core.act.swap import idle_nodes, swap_out
from megascale.core.contract import effects as fx
from megascale.core.contract.events import ProbeResult, SegmentTimes
from megascale.core.decide.blame import tell_refusal
from megascale.core.decide.breakers import exclusion_bound
from megascale.core.decide.shadow import held_back
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import Stage

if TYPE_CHECKING:
    from megascale.core.stats.online import StragglerDetector, Suspicion


def on_segments(turn: Turn, event: SegmentTimes) -> None:
    """Feed the detector; have every node it suspects probed."""
    record, live = turn.record, turn.live
    if event.attempt != record.attempt or record.stage is not Stage.RUNNING:
        return
    if len(event.compute_s) != record.ranks:
        return
    import numpy as np

    if live.stragglers is None:
        live.stragglers = _detector(turn)
    live.stragglers.min_slowdown = turn.policy.straggler_slowdown
    compute = np.array(event.compute_s)
    compute[compute <= 0.0] = np.nan
    for suspicion in live.stragglers.observe(
        event.step, {"forward": compute, "backward": np.zeros_like(compute)}
    ):
        _suspect(turn, suspicion)


def _detector(turn: Turn) -> StragglerDetector:
    from megascale.core.stats.online import StragglerDetector
    from megascale.core.stats.trace import Topology

    ranks = range(turn.record.ranks)
    per_node = turn.record.ranks // len(turn.record.assignment)
    per_stage = max(1, turn.record.ranks // turn.policy.pipeline)
    topology = Topology(
        tuple(ranks),
        tuple(turn.record.assignment[rank // per_node] for rank in ranks),
        tuple(rank // per_stage for rank in ranks),
    )
    return StragglerDetector(topology, min_slowdown=turn.policy.straggler_slowdown)


def _suspect(turn: Turn, suspicion: Suspicion) -> None:
    probe = turn.emit(fx.Probe, suspicion.reason, node=suspicion.node, deadline_s=turn.policy.probe_s)
    turn.live.probes[probe.effect_id] = suspicion


def on_probe(turn: Turn, event: ProbeResult) -> None:
    """The verdict: only a probe that failed convicts; one that could not tell is for a person."""
    suspicion = turn.live.probes.pop(event.effect_id, None)
    if suspicion is None or not turn.holds_ranks(suspicion.node):
        return
    fault = _fault(turn, suspicion, event)
    if event.healthy:
        note_aside(turn, fault, "none", "the probe found the node sound")
    elif event.healthy is None:
        incident = note_aside(turn, fault, "none", "the probe could not tell; a person decides")
        turn.emit(fx.Page, f"{suspicion.reason}; the probe could not tell", incident=incident.id)
    elif held_back(turn, "straggler", fault, "replace the node"):
        return
    elif bound := exclusion_bound(turn):
        incident = note_aside(turn, fault, "none", bound)
        words = f"{suspicion.node} is slow but not replaced: {bound}"
        tell_refusal(turn, suspicion.node, words, incident)
    elif turn.record.stage is Stage.RUNNING and idle_nodes(turn):
        swap_out(turn, fault, "slower than its peers, and the probe confirmed it")
    else:
        note_aside(turn, fault, "none", "no spare is there: a slow node is better than none")
        replenish(turn)


def _fault(turn: Turn, suspicion: Suspicion, event: ProbeResult) -> Fault:
    return Fault(
        "straggler",
        suspicion.reason,
        node=suspicion.node,
        rank=suspicion.ranks[0],
        at=turn.now,
        evidence=(f"probe: {event.detail}",) if event.detail else (),
    )
