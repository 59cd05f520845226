"""Who holds up the others: ranks suspects of a stall from what every rank was doing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from megascale.core.events import RankEvidence

_STATES: Final = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "is a zombie",
    "": "has no process",
}
_Ranks = list[tuple[str, RankEvidence]]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank (None: a whole node) that may hold up the job; `sure` = enough to act at once."""

    node: str
    rank: int | None
    why: str
    sure: bool


def suspects(
    evidence: Mapping[str, Sequence[RankEvidence]], *, ranks: int = 0, stages: int = 1
) -> list[Suspect]:
    """Suspects, surest first; empty = inconclusive.

    A stopped or missing process is positive evidence. So is a rank that entered fewer collectives than all
    others of its pipeline stage: they wait for it inside one it never reached (MegaScale 5: the silent rank
    is the suspect). A rank in uninterruptible sleep or in another phase than the majority is named, but not
    sure.

    Args:
        ranks, stages: size of the job and number of its pipeline stages, whose ranks are consecutive.
    """
    answered = [(node, rank) for node, found in evidence.items() for rank in found]
    if not answered:
        return []
    named: dict[int, Suspect] = {}
    for node, rank in answered:
        if rank.process_state in _STATES:
            named[rank.rank] = Suspect(
                node, rank.rank, f"rank {rank.rank} {_STATES[rank.process_state]}", sure=True
            )
    by_stage: dict[int, _Ranks] = defaultdict(list)
    for node, rank in answered:
        by_stage[rank.rank * stages // max(ranks, 1) if stages > 1 else 0].append((node, rank))
    for suspect in (*(s for peers in by_stage.values() for s in _behind(peers)), *_elsewhere(answered)):
        if suspect.rank is not None:
            named.setdefault(suspect.rank, suspect)
    return sorted(named.values(), key=lambda s: (not s.sure, s.rank))


def _behind(peers: _Ranks) -> list[Suspect]:
    """Ranks of one stage that entered fewer collectives; two peers that differ do not tell who is right."""
    counted = [(node, rank) for node, rank in peers if rank.collectives >= 0]
    counts = Counter(rank.collectives for _, rank in counted)
    if len(counts) < 2:
        return []
    most, least = max(counts), min(counts)
    behind = [(node, rank) for node, rank in counted if rank.collectives == least]
    if len(behind) * 2 > len(counted):
        return []
    sure = len(counts) == 2 and len({node for node, _ in behind}) == 1
    return [
        Suspect(
            node,
            rank.rank,
            f"rank {rank.rank} entered {rank.collectives} collectives, others {most}",
            sure=sure,
        )
        for node, rank in behind
    ]


def _elsewhere(answered: _Ranks) -> list[Suspect]:
    found = [
        Suspect(
            node, rank.rank, f"rank {rank.rank} sleeps uninterruptibly (driver or file system)", sure=False
        )
        for node, rank in answered
        if rank.process_state == "D"
    ]
    phases = Counter((rank.step, rank.phase) for _, rank in answered)
    (common, count), *_ = phases.most_common(1)
    if count * 2 > len(answered):
        found += [
            Suspect(
                node,
                rank.rank,
                f"rank {rank.rank} is in {rank.phase} of step {rank.step + 1}, most in {common[1]}",
                sure=False,
            )
            for node, rank in answered
            if (rank.step, rank.phase) != common
        ]
    return found
