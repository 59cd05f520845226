"""Which ranks hold up a stalled job by their stacks: outside a collective, or in another than the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from megascale.core.contract.events import RankEvidence

_WAITS: Final = ("torch/distributed/", "torch/autograd/graph.py", "torch/cuda/")
_LIBRARY: Final = "torch/"
_WRAPPERS: Final = frozenset({"wrapper", "func_wrapper", "wait", "<lambda>"})
_UNREAD: Final = "no stack: "


@dataclass(frozen=True, slots=True)
class Wait:
    """Where a rank waits for its peers: the call that waits, and the frame that made the call."""

    call: str
    caller: str

    def __str__(self) -> str:
        return f"{_name(self.call)}, called from {self.caller}" if self.caller else self.call


def stack_suspects(peers: Sequence[tuple[str, RankEvidence]]) -> list[tuple[str | None, int, str]]:
    """(node, rank, why) of the ranks of one pipeline stage that stand out by their stacks.

    The node is None where two ranks differ and neither is the odd one.
    """
    read = [(node, rank) for node, rank in peers if rank.stack and not rank.stack[0].startswith(_UNREAD)]
    waits = {rank.rank: wait for _, rank in read if (wait := wait_of(rank.stack)) is not None}
    outside = [(node, rank) for node, rank in read if rank.rank not in waits]
    if not waits or len(outside) * 2 > len(read):
        return []
    if outside:
        common, count = Counter(waits.values()).most_common(1)[0]
        others = f"{count} of {len(read)} ranks wait in {common}"
        return [(n, r.rank, f"rank {r.rank} is in {_where(r.stack)} while {others}") for n, r in outside]
    return list(_in_others(read, waits))


def wait_of(stack: Sequence[str]) -> Wait | None:
    """Where the rank waits for others, None if its innermost frame is elsewhere."""
    if not _file(stack[0]).startswith(_WAITS):
        return None
    inside = 0
    while inside < len(stack) and _file(stack[inside]).startswith(_LIBRARY):
        inside += 1
    calls = [frame for frame in stack[:inside] if _name(frame).rpartition(".")[2] not in _WRAPPERS]
    return Wait(calls[-1] if calls else stack[0], stack[inside] if inside < len(stack) else "")


def _in_others(
    read: Sequence[tuple[str, RankEvidence]], waits: dict[int, Wait]
) -> Iterator[tuple[str | None, int, str]]:
    """Ranks that wait in another place than most; the first of each where none has the majority."""
    places = Counter(waits.values())
    if len(places) < 2:
        return
    (common, most), *_ = places.most_common(1)
    tied = most * 2 <= len(read)
    for node, rank in read:
        if waits[rank.rank] != common:
            why = f"rank {rank.rank} waits in {waits[rank.rank]}, {most} of {len(read)} in {common}"
            yield None if tied else node, rank.rank, why


def _where(stack: Sequence[str]) -> str:
    """The innermost frame, and the program's own frame if that is another."""
    own = next((frame for frame in stack if not _file(frame).startswith(_LIBRARY)), stack[0])
    return stack[0] if own == stack[0] else f"{stack[0]}, called from {own}"


def _name(frame: str) -> str:
    return frame.partition(" (")[0]


def _file(frame: str) -> str:
    return frame.partition(" (")[2]
