"""Converts between the core's effects and events and the messages of `megascale.proto`.

An effect for agents becomes a `DriverMessage`; a message from an agent or a user becomes an event. Fields
that no message carries are listed in `LOCAL_ONLY`, each with the reason; tests/unit/driver/test_wire.py
compares the list with the messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.bounded_json import parse_json
from megascale.core.contract.codec import as_member
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Command, RankPhase
from megascale.driver.links import AgentLink
from megascale.fleet.base import SlotEvent
from megascale.rpc import megascale_pb2 as pb

_IN_LOG: Final = "informational; it is in the event log, and no agent acts on it"
_IN_RECORD: Final = "it is in the job record; nothing outside the driver needs it"
_BY_CORE: Final = "the core's own timer ends the wait"
_BY_DRIVER: Final = "the driver waits no longer for the fleet or for agents to connect"
_BY_FLEET: Final = "the fleet is called within the driver's process"
_IN_DRIVER: Final = "created and used only within the driver's process"

LOCAL_ONLY: Final[Mapping[type, Mapping[str, str]]] = {
    fx.Launch: {"reason": _IN_LOG},
    fx.Kill: {"reason": _IN_LOG},
    fx.CollectEvidence: {"reason": _IN_LOG, "deadline_s": _BY_DRIVER},
    fx.Probe: {"reason": _IN_LOG, "deadline_s": _BY_DRIVER},
    fx.CheckNodes: {"reason": _IN_LOG},
    fx.SaveNow: {"reason": _IN_LOG, "deadline_s": _BY_CORE},
    fx.Acquire: {"effect_id": _BY_FLEET, "reason": _IN_LOG},
    fx.Release: {"effect_id": _BY_FLEET, "reason": _IN_LOG},
    fx.RestartSlot: {"effect_id": _BY_FLEET, "reason": _IN_LOG},
    fx.Exclude: dict.fromkeys(("effect_id", "reason", "node", "incident"), _IN_RECORD),
    fx.RequestQuarantine: {"effect_id": _BY_FLEET, "reason": "the fleet reads the incident's reason"},
    fx.Page: {"effect_id": _IN_DRIVER, "incident": "the status lists incidents beside alerts"},
    fx.Finish: {"effect_id": _IN_DRIVER, "reason": _IN_RECORD, "state": _IN_RECORD},
    ev.NodeJoined: {
        "checked": "an agent does not vouch for its own node; only the simulator sets it, for repaired nodes"
    },
    ev.JobReport: dict.fromkeys(
        ("attempt", "progress", "quiet_until", "absent"), "the simulator's summary of many NodeReports"
    ),
    ev.ProbeResult: dict.fromkeys(("effect_id", "node", "healthy", "detail"), _BY_FLEET),
    ev.CommitDone: {"at": "when the driver learned of the commit, by its own clock"},
    ev.FleetRefused: dict.fromkeys(("effect_id", "reason"), _BY_FLEET),
    ev.SpecChanged: dict.fromkeys(("policy", "revision", "restart"), "read from a manifest"),
    ev.EffectDone: dict.fromkeys(("effect_id", "detail"), _IN_DRIVER),
    ev.EffectFailed: dict.fromkeys(("effect_id", "reason", "nodes"), _IN_DRIVER),
    ev.DriverStarted: {"term": _IN_DRIVER},
    ev.DriverPaused: {"gap_s": _IN_DRIVER},
}
"""Effect or event -> field that no message carries -> reason. Messages carry all other fields."""


# Effects to messages


def _order(term: int, command_id: str, **body: Any) -> pb.DriverMessage:  # noqa: ANN401 - one message body
    return pb.DriverMessage(term=term, command_id=command_id, **body)


def host_store_order(term: int, effect: fx.Launch) -> pb.DriverMessage:
    """Return the order for the first node of a launch to host the attempt's key-value store.

    Its id is not that of the launch orders: an answer that comes twice must not be taken for theirs.
    """
    return _order(term, f"{effect.effect_id}/store", host_store=pb.HostStore(attempt=effect.attempt))


def launch_orders(term: int, effect: fx.Launch, store_host: str, store_port: int) -> list[pb.DriverMessage]:
    """Return one order for each node of the launch, in the order of `effect.nodes`."""
    common: dict[str, Any] = {
        "attempt": effect.attempt,
        "nodes": len(effect.nodes),
        "store_host": store_host,
        "store_port": store_port,
        "resume": _commit(effect.resume) if effect.resume else None,
        "lineage": [
            pb.LineageEntry(attempt=attempt, resumed_from=_commit(commit) if commit else None)
            for attempt, commit in effect.lineage.items()
        ],
        "tier": effect.tier,
        "revision": effect.revision or "",
        "save_every_steps": effect.save_every_steps,
    }
    return [
        _order(term, effect.effect_id, launch=pb.Launch(node_rank=node_rank, **common))
        for node_rank in range(len(effect.nodes))
    ]


def kill_order(term: int, effect: fx.Kill) -> pb.DriverMessage:
    body = pb.Kill(attempt=effect.attempt, deadline_s=effect.deadline_s)
    return _order(term, effect.effect_id, kill=body)


def save_order(term: int, effect: fx.SaveNow) -> pb.DriverMessage:
    body = pb.Save(attempt=effect.attempt, then_stop=effect.then_stop)
    return _order(term, effect.effect_id, save=body)


def evidence_order(term: int, effect: fx.CollectEvidence) -> pb.DriverMessage:
    return _order(term, effect.effect_id, collect_evidence=pb.CollectEvidence(attempt=effect.attempt))


def check_order(term: int, effect: fx.CheckNodes) -> pb.DriverMessage:
    return _order(term, effect.effect_id, check_numbers=pb.CheckNumbers(deadline_s=effect.deadline_s))


def measure_order(term: int, effect: fx.Probe, duration_s: float, deadline_s: float) -> pb.DriverMessage:
    """Return the order to time matrix products for `duration_s` seconds, within `deadline_s` seconds."""
    body = pb.MeasureSpeed(duration_s=duration_s, deadline_s=deadline_s)
    return _order(term, f"{effect.effect_id}/speed", measure_speed=body)


def shutdown_order(term: int, reason: str, *, restart: bool = False) -> pb.DriverMessage:
    """Return the order to end the agent, which does not answer it; `restart` asks for the agent's restart."""
    return _order(term, "", shutdown=pb.Shutdown(reason=reason, restart=restart))


def _commit(commit: Commit) -> pb.Commit:
    return pb.Commit(step=commit.step, attempt=commit.attempt)


# Messages to events


def joined_event(link: AgentLink, message: pb.AgentMessage, known_labels: Mapping[str, str]) -> ev.NodeJoined:
    """Convert a Hello; the agent's own labels override `known_labels`, those of the fleet."""
    hello = message.hello
    labels = {**known_labels, **hello.labels}
    ranks = tuple(int(rank) for rank in hello.ranks)
    return ev.NodeJoined(link.node, link.incarnation, message.fence.attempt, ranks, labels)


def report_event(link: AgentLink, ranks: Sequence[pb.RankStatus]) -> ev.NodeReport:
    return ev.NodeReport(link.node, link.incarnation, link.attempt, node_progress(ranks))


def most_advanced_rank(ranks: Sequence[pb.RankStatus]) -> pb.RankStatus:
    """Return the rank with the highest step, the first one if several have it."""
    lead, most = ranks[0], ranks[0].step
    for rank in ranks:
        if (step := rank.step) > most:
            lead, most = rank, step
    return lead


def node_progress(ranks: Sequence[pb.RankStatus]) -> tuple[ev.RankProgress, ...]:
    """Aggregate the ranks of a node into one record; () if there are no ranks.

    Step, phase and step times are those of the most advanced rank. A milestone's time is that of the last
    rank, 0.0 until all ranks have reached it; stall and snapshot times are the longest. The loss is one that
    is not finite, if any rank has one.
    """
    if not ranks:
        return ()
    lead = most_advanced_rank(ranks)
    # One pass with plain lists, for speed: this runs for every heartbeat of every node.
    stalls, snapshots, groups, loaded, first = [], [], [], [], []
    with_loss: pb.RankStatus | None = None
    for rank in ranks:
        stalls.append(rank.stall_seconds)
        snapshots.append(rank.snapshot_seconds)
        groups.append(rank.groups_at)
        loaded.append(rank.loaded_at)
        first.append(rank.first_step_at)
        if rank.HasField("loss") and (with_loss is None or not math.isfinite(rank.loss)):
            with_loss = rank
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
            loss=with_loss.loss if with_loss is not None else None,
            grad_norm=with_loss.grad_norm
            if with_loss is not None and with_loss.HasField("grad_norm")
            else None,
        ),
    )


def saved_commits(ranks: Sequence[pb.RankStatus]) -> set[Commit]:
    """Return the newest commit that each rank took part in."""
    return {Commit(rank.saved_step, rank.saved_attempt) for rank in ranks if rank.saved_step >= 0}


def commit_event(commit: Commit, heard_at: float) -> ev.CommitDone:
    return ev.CommitDone(commit.step, commit.attempt, heard_at)


def snapshot_events(node: str, snapshots: Iterable[pb.Commit]) -> list[ev.SnapshotReady]:
    return [ev.SnapshotReady(node, snapshot.attempt, snapshot.step) for snapshot in snapshots]


def exit_event(link: AgentLink, exited: pb.RankExit) -> ev.RankExited:
    report = _exit_report(exited.exit_report)
    detail = report.get("detail")
    return ev.RankExited(
        node=link.node,
        incarnation=link.incarnation,
        attempt=exited.attempt,
        rank=exited.rank,
        exit_code=exited.exit_code if exited.HasField("exit_code") else None,
        signal=exited.signal if exited.HasField("signal") else None,
        at=exited.at,
        step=exited.step,
        error_type=str(report["type"]) if report.get("type") else None,
        error_message=str(report.get("message", "")),
        error_detail=detail if isinstance(detail, dict) else {},
        tail=tuple(exited.log_tail),
        injected=exited.injected,
        host_note=exited.host_note,
    )


_REPORT_DEPTH: Final = 16  # less than `bounded_json.MAX_DEPTH`, because the event log holds it in an event


def _exit_report(raw: str) -> dict[str, Any]:
    """Parse the report that a failed rank wrote; {} if it is missing or not a JSON object."""
    try:
        report = parse_json(raw, _REPORT_DEPTH) if raw else {}
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


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


def evidence_event(link: AgentLink, evidence: pb.Evidence) -> ev.Evidence:
    ranks = tuple(
        ev.RankEvidence(
            rank=rank.rank,
            process_state=rank.process_state or None,
            step=rank.step,
            phase=as_member(RankPhase, rank.phase) if rank.phase else None,
            micro_batch=rank.micro_batch,
            stack=tuple(rank.stack),
            collectives=rank.collectives,
        )
        for rank in evidence.ranks
    )
    return ev.Evidence(evidence.command_id, link.node, ranks)


def command_event(request: pb.CommandRequest) -> ev.ManualCommand:
    return ev.ManualCommand(
        as_member(Command, request.command), request.reason, request.node or None, request.by or None
    )


def slot_event(event: SlotEvent, incarnation: str | None) -> ev.NodeGone | ev.HardwareEvent:
    """Convert a fleet's event: "drain" if the node will leave soon, else NodeGone."""
    if event.leaving:
        return ev.HardwareEvent(event.node, "drain", text=event.reason, at=event.at)
    return ev.NodeGone(
        event.node,
        incarnation,
        event.reason,
        at=event.at,
        planned=event.planned,
        injected=event.injected,
    )
