"""The status document that `megascale status --json` prints and the terminal displays."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any, Final

from megascale.core.contract.codec import encode
from megascale.core.contract.vocabulary import Milestone
from megascale.core.machine import Core
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import Incident, JobState, NodeStatus
from megascale.driver.inbox import Inbox
from megascale.driver.links import Links
from megascale.job import TrainingJob
from megascale.observe.text import one_line
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import STATUS_BYTES

_RATE_WINDOW: Final = 40
_ALERT_CHARACTERS: Final = 500
_NODES_LISTED: Final = 2000


class StatusBoard:
    """Builds the status document from the core's state, the newest reports of the agents, and alerts."""

    def __init__(self, job: TrainingJob, core: Core, links: Links, inbox: Inbox) -> None:
        self._job, self._core, self._links, self._inbox = job, core, links, inbox
        self._alerts: deque[dict[str, Any]] = deque(maxlen=20)
        self._samples: deque[tuple[int, float, int]] = deque(maxlen=_RATE_WINDOW)
        self._loss: Any = None

    def alert(self, message: str) -> None:
        """Add a message to the status, at most 500 characters of it; the newest 20 are kept."""
        self._alerts.append({"time": time.time(), "message": one_line(message, _ALERT_CHARACTERS)})

    def sample(self, rank: pb.RankStatus) -> None:
        """Record the rank's progress, from which the token rate is computed."""
        point = (self._core.record.attempt, rank.progress_at, rank.tokens)
        if rank.progress_at and (not self._samples or self._samples[-1][1:] != point[1:]):
            self._samples.append(point)

    def document(self) -> dict[str, Any]:
        """Return the document as JSON values; times are Unix seconds, goodput and mfu are between 0 and 1."""
        record = self._core.record
        return {
            **self.overview(),
            "nodes": self._nodes(),
            "excluded": {name: exclusion.reason for name, exclusion in record.excluded.items()},
            "incidents": [incident_document(incident) for incident in incidents_of(self._core)],
        }

    def document_text(self) -> bytes:
        """Return the document as JSON of at most `STATUS_BYTES`.

        Where it would be longer, ranks are left out, then all nodes but the first and incidents but the
        newest.
        """
        document = self.document()
        text = json.dumps(document)
        for trim in (_leave_out_ranks, _leave_out_more):
            if len(text) > STATUS_BYTES:
                trim(document)
                text = json.dumps(document)
        return text.encode()

    def overview(self) -> dict[str, Any]:
        """Return the document without its nodes, exclusions and incidents."""
        core, record = self._core, self._core.record
        leader = self._leader()
        seconds = goodput_seconds(core, time.time())
        wall = sum(seconds.values())
        newest = max(record.commits, default=None)
        return {
            "job": self._job.metadata.name,
            "state": record.finish_state or str(record.state),
            "reason": record.finish_reason,
            "term": record.term,
            "attempt": record.attempt,
            "step": max(core.live.step, record.best_step if record.finish_state else 0),
            "steps": core.policy.steps,
            "reportsSteps": reports_steps(core),
            "loss": self._newest_loss(),
            "stepSeconds": leader.step_seconds if leader else None,
            "tokensPerSecond": self._tokens_per_second(),
            "microBatches": self._micro_batches(),
            "mfu": _mfu(self._links, record.attempt),
            "peakFlops": leader.peak_flops if leader else None,
            "goodput": seconds.get(GoodputPhase.PRODUCTIVE, 0.0) / wall if wall else None,
            "goodputSeconds": {str(phase): round(s, 3) for phase, s in seconds.items()},
            "restarts": sum(record.restarts.values()),
            "checkpointStep": newest.step if newest else None,
            "droppedEvents": self._inbox.dropped,
            "alerts": list(self._alerts),
            "updatedAt": time.time(),
        }

    def _micro_batches(self) -> dict[str, int] | None:
        """Return micro-batches per step of a data-parallel rank; None while the batch size ramps up."""
        spec = self._job.spec
        megatron = spec.runtime.megatron
        if megatron is None or megatron.data.batch_ramp is not None:
            return None
        layout, data = megatron.parallelism, megatron.data
        ranks = (len(self._core.record.assignment) or spec.nodes) * spec.ranks_per_node
        copies = max(1, ranks // (layout.tensor * layout.pipeline * layout.context))
        return {"perRank": data.global_batch // (data.micro_batch * copies), "samples": data.micro_batch}

    def _leader(self) -> pb.RankStatus | None:
        ranks = [
            r for link in self._links if link.attempt == self._core.record.attempt for r in link.report.ranks
        ]
        return max(ranks, key=lambda rank: rank.step, default=None)

    def _newest_loss(self) -> Any:  # noqa: ANN401 - a float, or a string if it is not finite
        """Return the loss of the newest reported step; the last known value once no rank reports one."""
        known = [r for link in self._links for r in link.report.ranks if r.HasField("loss")]
        if known:
            self._loss = encode(max(known, key=lambda rank: rank.step).loss)
        return self._loss

    def _tokens_per_second(self) -> float | None:
        points = [
            (at, tokens) for attempt, at, tokens in self._samples if attempt == self._core.record.attempt
        ]
        if len(points) < 2 or points[-1][0] <= points[0][0]:
            return None
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])

    def _nodes(self) -> list[dict[str, Any]]:
        core = self._core
        names = sorted(core.live.nodes, key=lambda name: (name not in core.record.assignment, name))
        return [self._node(name) for name in names if core.live.nodes[name].status is not NodeStatus.GONE]

    def _node(self, name: str) -> dict[str, Any]:
        record, link = self._core.record, self._links.get(name)
        assigned = name in record.assignment and self._core.record.state not in (
            JobState.ASSEMBLING,
            JobState.SUSPENDED,
        )
        current = link is not None and link.attempt == record.attempt
        return {
            "name": name,
            "status": str(self._core.live.nodes[name].status),
            "role": "training" if assigned else "spare",
            "ranks": [_rank(rank) for rank in link.report.ranks] if link and current else [],
        }


def reports_steps(core: Core) -> bool:
    """Return whether steps are known; without them goodput counts all time that ranks ran, an upper bound."""
    return core.policy.reports_steps or max(core.live.step, core.record.best_step) > 0


def _leave_out_ranks(document: dict[str, Any]) -> None:
    for node in document["nodes"]:
        node["ranks"] = []


def _leave_out_more(document: dict[str, Any]) -> None:
    document["nodesLeftOut"] = max(0, len(document["nodes"]) - _NODES_LISTED)
    document["nodes"] = document["nodes"][:_NODES_LISTED]
    document["excluded"] = dict(list(document["excluded"].items())[:_NODES_LISTED])
    document["incidents"] = document["incidents"][-1:]


def goodput_seconds(core: Core, now: float) -> dict[str, float]:
    """Return phase -> seconds spent in it, including the current phase up to `now` (Unix seconds).

    While no step comes, the time beyond the learnt bound of a step counts as detection: it is not productive,
    and a fault that is found later is charged with it.
    """
    ledger = core.record.ledger
    seconds = dict(ledger.seconds)
    if ledger.started_at and core.record.state is not JobState.FINISHED and now > ledger.since:
        seconds[ledger.phase] = seconds.get(ledger.phase, 0.0) + now - ledger.since
        idle_s = min(_idle_s(core, now), seconds.get(GoodputPhase.PRODUCTIVE, 0.0))
        if ledger.phase is GoodputPhase.PRODUCTIVE and idle_s:
            seconds[GoodputPhase.PRODUCTIVE] -= idle_s
            seconds[GoodputPhase.DETECTION] = seconds.get(GoodputPhase.DETECTION, 0.0) + idle_s
    return seconds


def _idle_s(core: Core, now: float) -> float:
    """Seconds beyond the learnt bound of a step in which none was completed; 0.0 if there is no bound."""
    live, policy = core.live, core.policy
    bound_s = core.record.clock.bound_s((), steps=policy.hang_steps, margin_s=policy.hang_margin_s)
    return 0.0 if bound_s is None else max(0.0, now - max(live.progress_at, live.quiet_until) - bound_s)


def incidents_of(core: Core) -> list[Incident]:
    """Return the closed incidents and the open one, oldest first."""
    return [*core.record.incidents, *([core.record.incident] if core.record.incident else [])]


def incident_document(incident: Incident) -> dict[str, Any]:
    """Return one incident as JSON values, with the seconds from fault to detection and to the next step."""
    stages = incident.milestones
    fault = stages[Milestone.FAULT].at
    first = stages.get(Milestone.FIRST_STEP)
    return {
        "id": incident.id,
        "cause": incident.cause,
        "reason": incident.reason,
        "node": incident.node or "",
        "rank": incident.rank,
        "attempt": incident.attempt,
        "action": incident.action or "",
        "decision": incident.decision,
        "outcome": incident.outcome or "open",
        "evidence": incident.evidence,
        "detectionSeconds": round(stages[Milestone.DETECTED].at - fault, 4),
        "recoverySeconds": round(first.at - fault, 4) if first else None,
        "milestones": {name: {"at": time.at, "source": time.source} for name, time in stages.items()},
    }


def _rank(rank: pb.RankStatus) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "pid": rank.pid,
        "step": rank.step,
        "phase": rank.phase,
        "stepSeconds": rank.step_seconds,
        "snapshotStep": rank.snapshot_step if rank.snapshot_step >= 0 else None,
        "mfu": rank.flops / rank.peak_flops if rank.peak_flops else None,
    }


def _mfu(links: Links, attempt: int) -> float | None:
    shares = [
        rank.flops / rank.peak_flops
        for link in links
        if link.attempt == attempt
        for rank in link.report.ranks
        if rank.peak_flops and rank.flops
    ]
    return sum(shares) / len(shares) if shares else None
