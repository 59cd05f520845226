"""Events: what shells report to the core. Times (`at`, `*_at`) are Unix seconds; 0.0 = not known."""

from __future__ import annotations

from dataclasses import dataclass, field

from megascale.core.contract.codec import Json
from megascale.core.contract.policy import Policy
from megascale.core.contract.vocabulary import Command, RankPhase


@dataclass(frozen=True, slots=True)
class RankProgress:
    """What the rank record of one rank says.

    Attributes:
        step: last completed step; progress_at: when it completed.
        groups_at, loaded_at, first_step_at: milestones of this attempt.
        step_seconds: duration of `step`; stall_seconds: blocked by saves so far in this attempt.
        snapshot_seconds: the part of stall_seconds that snapshots in memory took.
        loss, grad_norm: None where this rank does not know them.
    """

    rank: int
    step: int = 0
    phase: RankPhase = RankPhase.STARTUP
    progress_at: float = 0.0
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    groups_at: float = 0.0
    loaded_at: float = 0.0
    first_step_at: float = 0.0
    loss: float | None = None
    grad_norm: float | None = None
    snapshot_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """An agent joined, or reconnected.

    Attributes:
        attempt, ranks: what still runs on the node, 0 and () for a fresh agent.
        checked: the node passed the node checks since it was excluded.
    """

    node: str
    incarnation: str
    attempt: int = 0
    ranks: tuple[int, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    checked: bool = False


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A heartbeat with the records of the node's ranks."""

    node: str
    incarnation: str
    attempt: int = 0
    ranks: tuple[RankProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class JobReport:
    """The summarised form of a round of heartbeats, in which all ranks reported the same.

    Attributes:
        quiet_until: heartbeats and steps go on as they are until then, so neither silence nor a hang is
            suspected before. A later report may name an earlier time, which counts from then on.
        absent: nodes that the report does not cover.
    """

    attempt: int
    progress: RankProgress
    quiet_until: float = 0.0
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentTimes:
    """How long every rank computed in one step, without the time it waited for others.

    Attributes:
        compute_s: forward and backward seconds in rank order, 0.0 = not known.
    """

    attempt: int
    step: int
    compute_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NodeGone:
    """The fleet reports that the node, or its agent, is gone.

    Attributes:
        incarnation: of the agent that is meant, None = whichever there is.
        planned: drain or preemption: no blame, no budget; injected: by the job's own `faults`.
    """

    node: str
    incarnation: str | None
    reason: str
    at: float = 0.0
    planned: bool = False
    injected: bool = False


@dataclass(frozen=True, slots=True)
class RankExited:
    """A rank process ended.

    Attributes:
        exit_code, signal: one of them is set.
        error_type, error_message: of the rank's exit report, None and "" when it left none.
        tail: last lines of its log, bounded by the agent.
        host_note: what its machine says that may explain the end, such as processes killed for memory.
        at: when it ended; injected: by the job's own `faults`.
    """

    node: str
    incarnation: str
    attempt: int
    rank: int
    exit_code: int | None = None
    signal: int | None = None
    at: float = 0.0
    step: int = 0
    error_type: str | None = None
    error_message: str = ""
    error_detail: dict[str, Json] = field(default_factory=dict)
    tail: tuple[str, ...] = ()
    injected: bool = False
    host_note: str = ""


@dataclass(frozen=True, slots=True)
class LogMatch:
    """A line of a rank's log, or of the node's kernel log, matched a log rule."""

    node: str
    rule: str
    category: str
    action: str
    line: str
    rank: int | None = None
    attempt: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class HardwareEvent:
    """A device of the node reported something, or the node's owner announced a drain.

    Attributes:
        sign: xid, ecc, nvlink, pcie, nic, disk, memory, thermal, or drain.
        rule, category, action: what the agent's rules say; None = judge by sign, code and text.
    """

    node: str
    sign: str
    code: int | None = None
    text: str = ""
    at: float = 0.0
    rule: str | None = None
    category: str | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Answer to a Probe; `healthy` is None when it could not tell."""

    effect_id: str
    node: str
    healthy: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RankEvidence:
    """What one rank was doing when evidence was collected.

    Attributes:
        process_state: letter of /proc/PID/stat (R S D T Z), None = no process.
        collectives: collectives entered so far, -1 = not counted.
        stack: innermost frames first, bounded.
    """

    rank: int
    process_state: str | None = None
    step: int = 0
    phase: RankPhase | None = None
    micro_batch: int = 0
    collectives: int = -1
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """One node's answer to CollectEvidence."""

    effect_id: str
    node: str
    ranks: tuple[RankEvidence, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotReady:
    """All ranks of a node hold a memory snapshot of `step`; reported after a Kill and when an agent joins."""

    node: str
    attempt: int
    step: int


@dataclass(frozen=True, slots=True)
class CommitDone:
    """A checkpoint of `attempt` after `step` is committed."""

    step: int
    attempt: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetRefused:
    """The fleet cannot, or will not, do what an effect asks."""

    effect_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ManualCommand:
    """A person's command; `node` is what EVICT and RELEASE are about."""

    command: Command
    reason: str
    node: str | None = None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class SpecChanged:
    """The manifest changed to `policy`.

    Attributes:
        revision: names this version of the manifest; restart: it changes what ranks run (code, data, model).
    """

    policy: Policy
    revision: str | None = None
    restart: bool = False


@dataclass(frozen=True, slots=True)
class EffectDone:
    """An effect was carried out; `detail` is what the shell learnt (for Kill: `unreaped` nodes)."""

    effect_id: str
    detail: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EffectFailed:
    """An effect could not be carried out; `nodes` are those at fault, where known."""

    effect_id: str
    reason: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DriverStarted:
    """A driver of this term took over: the first event of every driver life."""

    term: int


@dataclass(frozen=True, slots=True)
class DriverPaused:
    """The driver took in no events and began no effects for `gap_s` seconds up to now: it was frozen, its
    machine slept, or it waited to write what was decided."""

    gap_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline (`Core.next_deadline`) is due."""


Event = (
    NodeJoined
    | NodeReport
    | JobReport
    | SegmentTimes
    | NodeGone
    | RankExited
    | LogMatch
    | HardwareEvent
    | ProbeResult
    | Evidence
    | SnapshotReady
    | CommitDone
    | FleetRefused
    | ManualCommand
    | SpecChanged
    | EffectDone
    | EffectFailed
    | DriverStarted
    | DriverPaused
    | Tick
)
