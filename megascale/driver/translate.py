"""From wire messages to core events."""

from __future__ import annotations

import json
from collections.abc import Iterable

from megascale.core import events as ev
from megascale.driver.links import AgentLink
from megascale.rpc import megascale_pb2 as pb


def progress_event(rank: pb.RankStatus) -> ev.RankProgress:
    return ev.RankProgress(
        rank=rank.rank,
        step=rank.step,
        phase=rank.phase,
        progress_at=rank.progress_at,
        step_seconds=rank.step_seconds,
        stall_seconds=rank.stall_seconds,
        snapshot_seconds=rank.snapshot_seconds,
        groups_at=rank.groups_at,
        loaded_at=rank.loaded_at,
        first_step_at=rank.first_step_at,
        loss=rank.loss if rank.HasField("loss") else None,
        grad_norm=rank.grad_norm if rank.HasField("grad_norm") else None,
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
        rule=event.rule,
        category=event.category,
        action=event.action,
    )
