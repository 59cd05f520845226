"""Who holds up the others: ranks suspects of a stall from what every rank was doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megascale.core.events import RankEvidence

_STATES = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "is a zombie",
    "": "has no process",
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank that may hold up the job; `sure` = positive evidence, enough to act at once."""

    node: str
    rank: int
    why: str
    sure: bool


def suspects(evidence: Mapping[str, Sequence[RankEvidence]]) -> list[Suspect]:
    """Suspects, surest first; empty = inconclusive.

    A stopped or missing process is positive evidence. So is a rank that entered fewer collectives than
    all others: they wait for it inside one it never reached (MegaScale 5: the silent rank is the suspect).
    A rank in uninterruptible sleep or in another phase than the majority is named, but not sure.
    """
    ranks = [(node, rank) for node, found in evidence.items() for rank in found]
    if not ranks:
        return []
    named: dict[int, Suspect] = {}
    for node, rank in ranks:
        if rank.process_state in _STATES:
            named[rank.rank] = Suspect(
                node, rank.rank, f"rank {rank.rank} {_STATES[rank.process_state]}", sure=True
            )
    for suspect in (*_behind(ranks), *_elsewhere(ranks)):
        named.setdefault(suspect.rank, suspect)
    return sorted(named.values(), key=lambda s: (not s.sure, s.rank))


def _behind(ranks: list[tuple[str, RankEvidence]]) -> list[Suspect]:
    counted = [(node, rank) for node, rank in ranks if rank.collectives >= 0]
    counts = Counter(rank.collectives for _, rank in counted)
    if len(counts) < 2:
        return []
    most, least = max(counts), min(counts)
    if counts[least] * 2 > len(counted):
        return []
    return [
        Suspect(
            node,
            rank.rank,
            f"rank {rank.rank} entered {rank.collectives} collectives, others {most}",
            sure=True,
        )
        for node, rank in counted
        if rank.collectives == least
    ]


def _elsewhere(ranks: list[tuple[str, RankEvidence]]) -> list[Suspect]:
    found = [
        Suspect(
            node, rank.rank, f"rank {rank.rank} sleeps uninterruptibly (driver or file system)", sure=False
        )
        for node, rank in ranks
        if rank.process_state == "D"
    ]
    phases = Counter((rank.step, rank.phase) for _, rank in ranks)
    (common, count), *_ = phases.most_common(1)
    if count * 2 > len(ranks):
        found += [
            Suspect(
                node,
                rank.rank,
                f"rank {rank.rank} is in {rank.phase} of step {rank.step + 1}, most in {common[1]}",
                sure=False,
            )
            for node, rank in ranks
            if (rank.step, rank.phase) != common
        ]
    return found
