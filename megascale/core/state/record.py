"""The core's state: `JobRecord` outlives the driver, `Live` is learnt again from the agents."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from megascale.core.contract.codec import Json
from megascale.core.contract.events import RankEvidence, RankExited
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import (
    Action,
    Cause,
    FinishState,
    Milestone,
    PlanKind,
    RankPhase,
    Source,
    Tier,
    Timer,
)
from megascale.core.rules import RuleMatch
from megascale.core.state.goodput import Ledger
from megascale.core.state.hang import PhaseBoard, StepClock
from megascale.core.stats.spikes import DecayDetector, SpikeDetector

if TYPE_CHECKING:
    from megascale.core.stats.online import StragglerDetector, Suspicion

INCIDENTS_KEPT: Final = 20
COMMITS_KEPT: Final = 32
LINEAGE_KEPT: Final = 64
EVIDENCE_KEPT: Final = 12
EVIDENCE_KEPT_CLOSED: Final = 3
TEXT_KEPT: Final = 240
TEXT_KEPT_CLOSED: Final = 110
INCIDENTS_KEPT_LONG: Final = 8
"""So many closed incidents keep their evidence; of older ones the record has the reason only."""
_PACE_DROP: Final = 0.05


class JobState(enum.StrEnum):
    """Where the job stands. Every state but FINISHED has an event or a deadline that leaves it."""

    ASSEMBLING = "assembling"
    LAUNCHING = "launching"
    RUNNING = "running"
    DIAGNOSING = "diagnosing"
    SAVING = "saving"
    STOPPING = "stopping"
    SUSPENDED = "suspended"
    FINISHED = "finished"


class NodeStatus(enum.StrEnum):
    """UNKNOWN: expected, but not heard of since this driver started; not taken for healthy."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    GONE = "gone"


def shortened(text: str, limit: int = TEXT_KEPT) -> str:
    """The text, or as much of it as fits the limit."""
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


@dataclass(slots=True)
class Node:
    """A node that the job has or had, as its agent reports it.

    Attributes:
        incarnation: of its agent, None = not known yet.
        heard_until: its last own heartbeat; absent: summarised reports leave it out.
        look_at: when its silence is judged next; an earlier entry in `Live.silence` is stale.
        released: it was given back to the fleet.
    """

    incarnation: str | None
    status: NodeStatus
    heard_until: float
    labels: dict[str, str] = field(default_factory=dict)
    absent: bool = False
    look_at: float = 0.0
    released: bool = False


@dataclass(slots=True)
class Blame:
    """Decaying blame of a node: `score` as of `at`, halved every `Policy.blame_half_life_s`."""

    score: float
    at: float


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why this job does not use a node (None when long ago: the event log has it).

    Attributes:
        retired: passing the checks does not bring it back, only a person does.
    """

    reason: str | None
    incident: str
    at: float
    retired: bool = False


@dataclass(slots=True)
class MilestoneTime:
    """When a milestone of an incident was reached, and how that is known."""

    at: float
    source: Source = Source.OBSERVED


@dataclass(slots=True)
class Incident:
    """A fault and its recovery, from when it happened until the job is back to speed.

    Attributes:
        node, rank: at fault, None = not known, or none is.
        action, decision: None and "" until it is decided.
        fault_step: newest step before the fault; outcome: None while open.
        consequence: may be the consequence of a fault that is not known yet.
        blamed: node -> the blame that it was given for this incident, and when.
        error: names the error that a rank ended with, apart from its numbers; "" = none.
    """

    id: str
    cause: Cause
    reason: str
    node: str | None = None
    rank: int | None = None
    action: Action | None = None
    decision: str = ""
    attempt: int = 0
    fault_step: int = 0
    consequence: bool = False
    evidence: list[str] = field(default_factory=list)
    milestones: dict[Milestone, MilestoneTime] = field(default_factory=dict)
    outcome: str | None = None
    blamed: dict[str, Blame] = field(default_factory=dict)
    error: str = ""

    def mark(self, milestone: Milestone, at: float, source: Source = Source.OBSERVED) -> None:
        """Note when `milestone` was reached; the first time counts."""
        self.milestones.setdefault(milestone, MilestoneTime(at, source))

    def add_evidence(self, line: str) -> None:
        """Keep a line once, bounded in number and length."""
        line = line[:TEXT_KEPT]
        if len(self.evidence) < EVIDENCE_KEPT and line not in self.evidence:
            self.evidence.append(line)

    def close(self, outcome: str) -> None:
        """End the incident and shorten its texts for the history; the event log has them in full."""
        self.outcome = outcome
        self.reason = self.reason[: 2 * TEXT_KEPT_CLOSED]
        self.decision = self.decision[:TEXT_KEPT_CLOSED]
        self.evidence = [line[:TEXT_KEPT_CLOSED] for line in self.evidence[:EVIDENCE_KEPT_CLOSED]]

    def fade(self) -> None:
        """Shorten the texts once more: newer incidents have taken its place."""
        self.reason, self.evidence = self.reason[:TEXT_KEPT_CLOSED].rstrip(), []


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows once the ranks are stopped; `state` is what a FINISH ends in, None for the others."""

    then: PlanKind
    reason: str
    state: FinishState | None = None

    @property
    def asked_for(self) -> bool:
        """Whether a person or the manifest asked for it; no fault overrules that."""
        return self.then is PlanKind.SUSPEND or self.state in (FinishState.STOPPED, FinishState.COMPLETED)


@dataclass(frozen=True, slots=True)
class Pending:
    """An effect that was not answered yet, as JSON.

    Attributes:
        without: the effect's `nodes` are the assignment without these; None = `data` has them, if any.
    """

    kind: str
    data: dict[str, Json]
    without: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class NodeLoss:
    """A node that was lost while it held ranks.

    Attributes:
        domain: its part of the network, None = not known.
        shared: it was lost together with many others, and is not blamed.
    """

    domain: str | None
    at: float
    reason: str
    shared: bool = False


@dataclass(slots=True)
class Spec:
    """Which revision of the manifest the ranks run, which waits, and which to fall back to.

    Attributes:
        rejected: the revision that was rolled back last; it is not applied again until another one came.
        step, attempt: best step of the job when `running` was applied, and the first attempt that ran it.
        before: the policy to fall back to.
    """

    running: str | None = None
    waiting: str | None = None
    previous: str | None = None
    rejected: str | None = None
    step: int = 0
    attempt: int = 0
    before: Policy | None = None


@dataclass(slots=True)
class Saves:
    """What saving cost in this job: number of saves, seconds the slowest rank was blocked.

    Attributes:
        attempt_stall_s: time the slowest rank of this attempt was blocked so far, as it reported;
            attempt_snapshot_s: by snapshots alone. None = not known, then the next report is where to begin.
    """

    count: int = 0
    stall_s: float = 0.0
    attempt_stall_s: float | None = None
    attempt_snapshot_s: float | None = None


@dataclass(slots=True)
class JobRecord:
    """What a driver must know to go on where the one before it stopped; stored as the job record.

    Attributes:
        tainted: attempt -> step from which on its checkpoints may hold wrong numbers.
        memory_from: snapshots in memory of attempts before this one are not restored any more.
        tier: where the current attempt restored from; ranks: how many it has.
        spares: nodes that held no ranks when the record was written.
        lost: nodes lost since the last launch, not used before it is settled whether they are to blame.
        shared: network domains that lost many nodes at once, and when.
        history: times of the incidents a node was blamed for.
        draining: nodes that will go away soon, and why.
        refused: faulty nodes that a bound forbids to exclude, and when a person was paged.
        launched_at: when the current attempt was launched, 0.0 = never.
        waiting_since: since when a launch waits for nodes, 0.0 = it does not.
        failures_in_row, failures_at_step: without a new step; of these, at the same step `failed_step`.
        restarts_in_row: since the last progress, which the back-off counts.
        failures: faults charged to a budget over the job's life.
        shadowed: by detector, how often it would have acted.
        anomaly_step: step of the last jump of the loss that was acted on.
        roll_backs: when wrong numbers led to one since a node was last found to compute them, newest last.
    """

    term: int = 0
    attempt: int = 0
    state: JobState = JobState.ASSEMBLING
    plan: Plan | None = None
    lineage: dict[int, Commit | None] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    distrusted: list[Commit] = field(default_factory=list)
    tainted: dict[int, int] = field(default_factory=dict)
    memory_from: int = 0
    assignment: tuple[str, ...] = ()
    tier: Tier = Tier.DURABLE
    ranks: int = 0
    spares: tuple[str, ...] = ()
    excluded: dict[str, Exclusion] = field(default_factory=dict)
    exclusion_times: list[float] = field(default_factory=list)
    lost: dict[str, NodeLoss] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    blame: dict[str, Blame] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    draining: dict[str, str] = field(default_factory=dict)
    refused: dict[str, float] = field(default_factory=dict)
    container_restarts: dict[str, float] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    failures_in_row: int = 0
    failures_at_step: int = 0
    failed_step: int = -1
    restarts_in_row: int = 0
    best_step: int = 0
    clock: StepClock = field(default_factory=StepClock)
    saves: Saves = field(default_factory=Saves)
    spec: Spec = field(default_factory=Spec)
    incident: Incident | None = None
    incidents: list[Incident] = field(default_factory=list)
    pending: dict[str, Pending] = field(default_factory=dict)
    deadlines: dict[Timer, float] = field(default_factory=dict)
    next_effect: int = 1
    next_incident: int = 1
    outstanding: int = 0
    refusals: int = 0
    launched_at: float = 0.0
    waiting_since: float = 0.0
    suspended_by_spec: bool = False
    shadowed: dict[str, int] = field(default_factory=dict)
    anomaly_step: int = -1
    roll_backs: list[float] = field(default_factory=list)
    finish_state: FinishState | None = None
    finish_reason: str = ""
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(slots=True)
class Milestones:
    """Progress of the current launch over its nodes: who has passed, and the latest time."""

    groups: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    first_step: set[str] = field(default_factory=set)
    groups_at: float = 0.0
    loaded_at: float = 0.0
    first_step_at: float = 0.0


@dataclass(slots=True)
class NumericsWatch:
    """Loss and gradient norm of this attempt.

    Attributes:
        step: judged up to here; good_step: newest step with normal values.
        kind, count, reason: the anomaly under way and over how many steps it was seen.
    """

    loss: SpikeDetector = field(default_factory=lambda: SpikeDetector("loss"))
    grad_norm: SpikeDetector = field(default_factory=lambda: SpikeDetector("gradient norm", sigmas=0.0))
    step: int = 0
    good_step: int = 0
    kind: str | None = None
    count: int = 0
    reason: str = ""


def pace_detector() -> DecayDetector:
    """Watches the steps per second of attempts of one size."""
    return DecayDetector("steps per second", drop=_PACE_DROP)


@dataclass(slots=True)
class Live:
    """What agents reported; empty after a driver restart.

    Attributes:
        silence: heap of (when to judge, node); absent: nodes that summarised reports leave out.
        cut_off_until: most nodes are silent; until then they are not taken for lost.
        pace: (step, productive seconds when it was completed), newest last.
        unpriced: how much work the last restart lost is not known before the next step.
        left_first: the first rank that completed or left, while others may still work.
        snapshots: node -> the newest snapshots that all its ranks hold in memory, oldest first.
        evidence_id: the CollectEvidence that is being answered; asked: the nodes it is for.
        signals: recent hardware events and log lines that may explain a fault.
        probes: Probe effects that are to confirm a straggler.
        assigned: the assignment, and the same as a set.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    silence: list[tuple[float, str]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    quiet_until: float = 0.0
    heard_all_at: float = 0.0
    cut_off_until: float = 0.0
    step: int = 0
    reported_at: float = 0.0
    progress_at: float = 0.0
    phase: RankPhase = RankPhase.STARTUP
    phases: PhaseBoard = field(default_factory=PhaseBoard)
    pace: list[tuple[int, float]] = field(default_factory=list)
    unpriced: bool = False
    milestones: Milestones = field(default_factory=Milestones)
    exits: dict[int, int] = field(default_factory=dict)
    left_first: RankExited | None = None
    snapshots: dict[str, tuple[Commit, ...]] = field(default_factory=dict)
    evidence_id: str | None = None
    asked: frozenset[str] = frozenset()
    evidence: dict[str, tuple[RankEvidence, ...]] = field(default_factory=dict)
    signals: list[RuleMatch] = field(default_factory=list)
    numerics: NumericsWatch = field(default_factory=NumericsWatch)
    speed: DecayDetector = field(default_factory=pace_detector)
    stragglers: StragglerDetector | None = None
    probes: dict[str, Suspicion] = field(default_factory=dict)
    assigned: tuple[tuple[str, ...], frozenset[str]] = ((), frozenset())
