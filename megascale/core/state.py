"""What the core knows. `Record` survives a driver restart; `Live` is learnt again from the agents."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from megascale.core.codec import Json
from megascale.core.events import RankEvidence
from megascale.core.goodput import Ledger
from megascale.core.hang import StepClock
from megascale.core.lineage import Commit

INCIDENTS_KEPT = 20
COMMITS_KEPT = 32
LINEAGE_KEPT = 64
EVIDENCE_KEPT = 12


class Stage(enum.StrEnum):
    """Where the job stands. Every stage but FINISHED has an event or a deadline that leaves it."""

    ASSEMBLING = "assembling"
    LAUNCHING = "launching"
    RUNNING = "running"
    DIAGNOSING = "diagnosing"
    SAVING = "saving"
    STOPPING = "stopping"
    SUSPENDED = "suspended"
    FINISHED = "finished"


class NodeStatus(enum.StrEnum):
    """UNKNOWN is a status of its own: a node not heard of since the driver started is not healthy."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    GONE = "gone"


@dataclass(slots=True)
class Node:
    """An agent's place. `heard_until`: its last own beat; `absent`: summarised reports leave it out."""

    incarnation: str
    status: NodeStatus
    heard_until: float
    labels: dict[str, str] = field(default_factory=dict)
    absent: bool = False


@dataclass(slots=True)
class Blame:
    """Decaying blame of a node: `score` as of `at`, halved every `Policy.blame_half_life_s`."""

    score: float
    at: float


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why this job does not use a node."""

    reason: str
    incident: str
    at: float


@dataclass(slots=True)
class StageTime:
    """When a stage of an incident was reached; `source`: observed, estimated or injected."""

    at: float
    source: str = "observed"


@dataclass(slots=True)
class Incident:
    """One record from the fault to the first good step.

    Attributes:
        cause: crash, user_code, hang, node_lost, checkpoint_corrupt, launch_failed, manual, planned...
        action: restart_in_place, restart_container, replace_node, roll_back, shrink, fail_job, none
        stages: fault, detected, decided, stopped, launched, groups, loaded, firstStep, backToSpeed.
        fault_step: newest step before the fault; outcome: "" while open.
        consequence: may be an echo of a fault not seen yet.
    """

    id: str
    cause: str
    reason: str
    node: str = ""
    rank: int | None = None
    action: str = ""
    decision: str = ""
    attempt: int = 0
    fault_step: int = 0
    consequence: bool = False
    evidence: list[str] = field(default_factory=list)
    stages: dict[str, StageTime] = field(default_factory=dict)
    outcome: str = ""

    def mark(self, stage: str, at: float, source: str = "observed") -> None:
        """Note when `stage` was reached; the first time counts."""
        self.stages.setdefault(stage, StageTime(at, source))

    def add_evidence(self, line: str) -> None:
        if len(self.evidence) < EVIDENCE_KEPT:
            self.evidence.append(line)


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows once the ranks are stopped: relaunch, suspend, or finish with `state` and `reason`."""

    then: str
    reason: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """An effect that was not answered yet, as JSON."""

    kind: str
    data: dict[str, Json]


@dataclass(slots=True)
class Record:
    """The job record's part of the state (contracts 7)."""

    term: int = 0
    attempt: int = 0
    stage: Stage = Stage.ASSEMBLING
    plan: Plan | None = None
    lineage: dict[int, Commit | None] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    distrusted: list[Commit] = field(default_factory=list)
    assignment: tuple[str, ...] = ()
    excluded: dict[str, Exclusion] = field(default_factory=dict)
    exclusion_times: list[float] = field(default_factory=list)
    blame: dict[str, Blame] = field(default_factory=dict)
    container_restarts: dict[str, float] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    failures_in_row: int = 0
    best_step: int = 0
    incident: Incident | None = None
    incidents: list[Incident] = field(default_factory=list)
    pending: dict[str, Pending] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    next_effect: int = 1
    next_incident: int = 1
    outstanding: int = 0
    refusals: int = 0
    finish_state: str = ""
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
class Live:
    """What the agents tell; empty after a driver restart."""

    nodes: dict[str, Node] = field(default_factory=dict)
    silence: list[tuple[float, str]] = field(default_factory=list)
    quiet_until: float = 0.0
    heard_all_at: float = 0.0
    step: int = 0
    progress_at: float = 0.0
    phase: str = "startup"
    clock: StepClock = field(default_factory=StepClock)
    milestones: Milestones = field(default_factory=Milestones)
    exits: dict[int, int] = field(default_factory=dict)
    stalls: dict[int, float] = field(default_factory=dict)
    evidence: dict[str, tuple[RankEvidence, ...]] = field(default_factory=dict)
