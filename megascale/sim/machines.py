"""Simulated nodes and the agents on them: their true state, as opposed to what the core knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from megascale.core.contract.events import RankExited
from megascale.sim.training import Run

RUNNING, STOPPED, UNINTERRUPTIBLE = "R", "T", "D"


@dataclass(slots=True)
class Machine:
    """One node.

    Attributes:
        power: the machine is up; incarnation: of its agent, None = no agent runs.
        linked: agent and driver can reach each other.
        held: the fleet gave it to the job.
        run: the attempt whose ranks live here; ranks: rank -> process state letter.
        stuck: its ranks cannot be reaped.
        exits: ends of ranks of the newest attempt, sent again on every reconnect.
        seen: the highest (term, attempt) a driver showed this agent.
        skew_s: its clock is ahead of true time by this.
        launched, killed: newest attempt this agent started or killed ranks of, 0 = none.
        defect: name of a fault that comes back until the node is repaired, None = sound.
        checked: it passed the node checks since it was given back, so an exclusion no longer counts.
        faulted_at: when a fault was last injected into it, to judge evictions by.
        slowdown: its ranks compute this many times longer than others.
        behind: its ranks did not enter the collective all others wait in.
    """

    name: str
    power: bool = True
    incarnation: str | None = None
    linked: bool = True
    held: bool = False
    run: Run | None = None
    ranks: dict[int, str] = field(default_factory=dict)
    stuck: bool = False
    exits: list[RankExited] = field(default_factory=list)
    seen: tuple[int, int] = (0, 0)
    skew_s: float = 0.0
    defect: str | None = None
    lives: int = 0
    delivered_at: float = 0.0
    behind: bool = False
    launched: int = 0
    killed: int = 0
    checked: bool = False
    faulted_at: float = -1e12
    slowdown: float = 1.0

    def boot(self) -> None:
        """Start a fresh agent process; no ranks survive."""
        self.lives += 1
        self.incarnation = f"{self.name}/{self.lives}"
        self.exits = []
        self.seen = (0, 0)
        self.launched = self.killed = 0
        self.stuck = self.behind = False
        self.drop_ranks()

    def stop_agent(self) -> None:
        self.incarnation = None
        self.drop_ranks()

    def drop_ranks(self) -> None:
        """Remove its ranks; the others of the attempt can complete no further step."""
        run, self.run, self.ranks = self.run, None, {}
        if run is not None:
            run.lost(self.name)

    @property
    def agent(self) -> str:
        """Incarnation of its agent, where one is known to run."""
        if self.incarnation is None:
            raise ValueError(f"no agent runs on {self.name}")
        return self.incarnation

    @property
    def reachable(self) -> bool:
        return self.power and self.linked and self.incarnation is not None
