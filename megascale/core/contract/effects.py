"""Effects: what the core asks its shell to do.

Every effect is idempotent, has a reason for people, and is answered by EffectDone or EffectFailed. An effect
that was not answered when the driver died is issued again, with the same id, to its successor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import FinishState, Tier


@dataclass(frozen=True, slots=True)
class Launch:
    """Start every rank of an attempt.

    Attributes:
        nodes: in rank order; resume: None = from scratch.
        revision: of the manifest to run, None = the only one there is.
        save_every_steps: steps between checkpoints, 0 = as the manifest says.
        tier: where `resume` is kept.
    """

    effect_id: str
    reason: str
    attempt: int
    nodes: tuple[str, ...]
    resume: Commit | None
    lineage: dict[int, Commit | None] = field(default_factory=dict)
    revision: str | None = None
    save_every_steps: int = 0
    tier: Tier = Tier.DURABLE


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL every rank of `attempt` or older.

    Done when they are reaped or `deadline_s` has passed; detail `unreaped` lists the nodes that failed to.
    """

    effect_id: str
    reason: str
    attempt: int
    nodes: tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class CollectEvidence:
    """Collect process states, stacks and collective counts of all ranks; each node answers with Evidence."""

    effect_id: str
    reason: str
    attempt: int
    nodes: tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the node is alive and not slow; answered by ProbeResult."""

    effect_id: str
    reason: str
    node: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class CheckNodes:
    """Compute the same known products on nodes whose ranks are stopped, and compare them bit for bit.

    Done when all have answered or `deadline_s` has passed; detail `convicted` maps nodes to what was wrong.
    """

    effect_id: str
    reason: str
    nodes: tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class SaveNow:
    """Have all ranks save after the same coming step, and stop after it when `then_stop` is set."""

    effect_id: str
    reason: str
    attempt: int
    then_stop: bool
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask the fleet for `count` more nodes, none of them in `avoid`."""

    effect_id: str
    reason: str
    count: int
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """Return the node to the fleet."""

    effect_id: str
    reason: str
    node: str


@dataclass(frozen=True, slots=True)
class RestartSlot:
    """Restart the node's agent (on Kubernetes: its container)."""

    effect_id: str
    reason: str
    node: str


@dataclass(frozen=True, slots=True)
class Exclude:
    """Record that this job does not use the node until it passes the checks or a person releases it."""

    effect_id: str
    reason: str
    node: str
    incident: str


@dataclass(frozen=True, slots=True)
class RequestQuarantine:
    """Ask the cluster to take the node out of service; follows the remediation mode."""

    effect_id: str
    reason: str
    node: str
    incident: str


@dataclass(frozen=True, slots=True)
class Page:
    """Notify a person: automation has stopped acting, or needs a decision."""

    effect_id: str
    reason: str
    incident: str | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """End the job: write the summary and release every node."""

    effect_id: str
    reason: str
    state: FinishState


Effect = (
    Launch
    | Kill
    | CollectEvidence
    | Probe
    | CheckNodes
    | SaveNow
    | Acquire
    | Release
    | RestartSlot
    | Exclude
    | RequestQuarantine
    | Page
    | Finish
)
