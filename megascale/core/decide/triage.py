"""Which ranks may hold up a stalled job, from what every rank was doing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from megascale.core.contract.events import RankEvidence
from megascale.core.contract.vocabulary import RankPhase
from megascale.core.decide.stacks import stack_suspects

_STATES: Final[dict[str | None, str]] = {
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "is a zombie",
    None: "has no process",
}


class _Group(NamedTuple):
    stage: int
    state: str | None
    step: int
    phase: RankPhase | None
    collectives: int


_Groups = dict[_Group, list[tuple[str, RankEvidence]]]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank (None: a whole node) that may hold up the job; `sure` = enough to act at once.

    `node` is None where it is not known on which side the fault is.
    """

    node: str | None
    rank: int | None
    why: str
    sure: bool
    by_stack: bool = False


def suspects(
    evidence: Mapping[str, Sequence[RankEvidence]], *, ranks: int = 0, stages: int = 1
) -> list[Suspect]:
    """Suspects, surest first; empty = inconclusive.

    A stopped or missing process is positive evidence. So is a rank that entered fewer collectives than all
    others of its pipeline stage: they wait for it inside one that it never reached. A rank whose stack is
    outside of a collective while the others wait in one, or in another one than theirs, is named but not
    sure, since it may be slow; so is one in uninterruptible sleep, or in another phase than most.

    Args:
        ranks, stages: size of the job and number of its pipeline stages, whose ranks are consecutive.
    """
    groups = _alike(evidence, max(ranks, 1), stages)
    if not groups:
        return []
    named: dict[int, Suspect] = {}
    for group, members in groups.items():
        if group.state in _STATES:
            for node, rank in members:
                why = f"rank {rank.rank} {_STATES[group.state]}"
                named[rank.rank] = Suspect(node, rank.rank, why, sure=True)
    by_stage: dict[int, _Groups] = defaultdict(dict)
    for group, members in groups.items():
        by_stage[group.stage][group] = members
    stages_found = by_stage.values()
    for suspect in (
        *(s for peers in stages_found for s in _behind(peers)),
        *(s for peers in stages_found for s in _by_stack(peers)),
        *_elsewhere(groups),
    ):
        if suspect.rank is not None:
            named.setdefault(suspect.rank, suspect)
    return sorted(named.values(), key=lambda s: (not s.sure, not s.by_stack, s.rank))


def _alike(evidence: Mapping[str, Sequence[RankEvidence]], ranks: int, stages: int) -> _Groups:
    """Group the ranks by what they were doing; thousands of ranks make a few groups."""
    groups: dict[_Group, list[tuple[str, RankEvidence]]] = defaultdict(list)
    for node, found in evidence.items():
        for rank in found:
            stage = rank.rank * stages // ranks if stages > 1 else 0
            key = _Group(stage, rank.process_state, rank.step, rank.phase, rank.collectives)
            groups[key].append((node, rank))
    return dict(groups)


def _behind(peers: _Groups) -> list[Suspect]:
    """Ranks of one stage that entered the fewest collectives, unless they are more than half of it."""
    counts: Counter[int] = Counter()
    for group, members in peers.items():
        if group.collectives >= 0:
            counts[group.collectives] += len(members)
    if len(counts) < 2:
        return []
    most, least = max(counts), min(counts)
    if counts[least] * 2 > counts.total():
        return []
    behind = [each for group, members in peers.items() if group.collectives == least for each in members]
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


def _by_stack(peers: _Groups) -> list[Suspect]:
    everyone = sorted((each for members in peers.values() for each in members), key=lambda each: each[1].rank)
    return [
        Suspect(node, rank, why, sure=False, by_stack=True) for node, rank, why in stack_suspects(everyone)
    ]


def _elsewhere(groups: _Groups) -> list[Suspect]:
    found = [
        Suspect(
            node, rank.rank, f"rank {rank.rank} sleeps uninterruptibly (driver or file system)", sure=False
        )
        for group, members in groups.items()
        if group.state == "D"
        for node, rank in members
    ]
    phases: Counter[tuple[int, RankPhase | None]] = Counter()
    for group, members in groups.items():
        phases[group.step, group.phase] += len(members)
    (common, count), *_ = phases.most_common(1)
    if count * 2 > phases.total():
        found += [
            Suspect(
                node,
                rank.rank,
                f"rank {rank.rank} is in {rank.phase} of step {rank.step + 1}, most in {common[1]}",
                sure=False,
            )
            for group, members in groups.items()
            if (group.step, group.phase) != common
            for node, rank in members
        ]
    return found
