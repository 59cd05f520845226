"""From wire messages to core events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from megascale.core.contract import events as ev
from megascale.core.contract.codec import as_member
from megascale.core.contract.vocabulary import RankPhase
from megascale.driver.links import AgentLink
from megascale.rpc import megascale_pb2 as pb


def most_advanced_rank(ranks: Sequence[pb.RankStatus]) -> pb.RankStatus:
    """The rank with the most steps, of several the first."""
    lead, most = ranks[0], ranks[0].step
    for rank in ranks:
        if (step := rank.step) > most:
            lead, most = rank, step
    return lead


def node_progress(ranks: Sequence[pb.RankStatus]) -> tuple[ev.RankProgress, ...]:
    """One record that stands for all ranks of a node; () without ranks.

    A milestone counts once all have passed it, a stall as long as the longest; step, phase and times are the
    foremost rank's, and wrong numbers of any rank come before right ones.
    """
    if not ranks:
        return ()
    lead = most_advanced_rank(ranks)
    # Plain lists, once over each rank: this runs for every heartbeat of every node.
    stalls, snapshots, groups, loaded, first = [], [], [], [], []
    told: pb.RankStatus | None = None
    for rank in ranks:
        stalls.append(rank.stall_seconds)
        snapshots.append(rank.snapshot_seconds)
        groups.append(rank.groups_at)
        loaded.append(rank.loaded_at)
        first.append(rank.first_step_at)
        if rank.HasField("loss") and (told is None or not math.isfinite(rank.loss)):
            told = rank
    return (
        ev.RankProgress(
            rank=lead.rank,
            step=lead.step,
            phase=as_member(RankPhase, lead.phase),
            progress_at=lead.progress_at,
            step_seconds=lead.step_seconds,
            stall_seconds=max(stalls),
            snapshot_seconds=max(snapshots),
            groups_at=max(groups) if all(groups) else 0.0,
            loaded_at=max(loaded) if all(loaded) else 0.0,
            first_step_at=max(first) if all(first) else 0.0,
            loss=told.loss if told is not None else None,
            grad_norm=told.grad_norm if told is not None and told.HasField("grad_norm") else None,
        ),
    )


def snapshot_events(node: str, snapshots: Iterable[pb.Commit]) -> list[ev.SnapshotReady]:
    return [ev.SnapshotReady(node, snapshot.attempt, snapshot.step) for snapshot in snapshots]


def exit_event(link: AgentLink, report: pb.RankExit) -> ev.RankExited:
    words = _words(report.words)
    detail = words.get("detail")
    return ev.RankExited(
        node=link.node,
        incarnation=link.incarnation,
        attempt=report.attempt,
        rank=report.rank,
        exit_code=report.exit_code if report.HasField("exit_code") else None,
        signal=report.signal if report.HasField("signal") else None,
        at=report.at,
        step=report.step,
        error_type=str(words.get("type", "")),
        error_message=str(words.get("message", "")),
        error_detail=detail if isinstance(detail, dict) else {},
        tail=tuple(report.tail),
        injected=report.injected,
    )


def _words(raw: str) -> dict[str, object]:
    try:
        words = json.loads(raw) if raw else {}
    except ValueError:
        return {}
    return words if isinstance(words, dict) else {}


def log_event(link: AgentLink, match: pb.LogMatch) -> ev.LogMatch:
    return ev.LogMatch(
        node=link.node,
        rule=match.rule,
        category=match.category,
        action=match.action,
        line=match.line,
        rank=match.rank,
        attempt=match.attempt,
        at=match.at,
    )


def hardware_event(link: AgentLink, event: pb.HardwareEvent) -> ev.HardwareEvent:
    return ev.HardwareEvent(
        node=link.node,
        sign=event.sign,
        code=event.code if event.HasField("code") else None,
        text=event.text,
        at=event.at,
        rule=event.rule or None,
        category=event.category or None,
        action=event.action or None,
    )
