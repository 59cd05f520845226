"""Which nodes are tested together, and who is to blame. Pure.

A pair that fails or is slow accuses two nodes and the link between them. Its members are paired again, with
nodes that are known to be good; a node whose every pair is bad is convicted, a bad pair of two good nodes is
a link. A node is known to be good when a pair with it was good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Pair = tuple[str, str]
MAX_ROUNDS: Final = 8
SMALL: Final = 5
"""Up to so many nodes every pair is tested: two slow nodes among four can make all pairs of a round alike."""
_FEW_RESULTS: Final = 12
_MEASUREMENTS: Final = 3


@dataclass(frozen=True, slots=True)
class PairResult:
    """What came of one pair.

    Attributes:
        seconds: of one all-reduce; None when there was no result.
        fault: "" | "failed" (no result) | "wrong" (a wrong sum).
        detail: the text of the error.
    """

    a: str
    b: str
    round: int
    seconds: float | None
    fault: Literal["", "failed", "wrong"] = ""
    detail: str = ""

    @property
    def key(self) -> frozenset[str]:
        """The pair, whichever way round."""
        return frozenset((self.a, self.b))


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What follows from the pairs.

    Attributes:
        convicted: nodes whose every pair was bad.
        links: pairs that were bad although both nodes are good.
        undecided: bad pairs that accuse a node which nothing clears or convicts.
        unmeasured: nodes of no pair.
    """

    convicted: tuple[str, ...]
    links: tuple[Pair, ...]
    undecided: tuple[Pair, ...]
    unmeasured: tuple[str, ...]


class Pairings:
    """The state of a pairwise test: says what to test next, takes results, concludes.

    Args:
        nodes: in order of nearness; neighbours are tested first.
        least: share of the good pairs' speed below which a pair is slow.
    """

    def __init__(self, nodes: Sequence[str], *, least: float) -> None:
        self._nodes = tuple(dict.fromkeys(nodes))
        self._least = least
        self._results: dict[frozenset[str], list[PairResult]] = {}
        self._round = 0

    @property
    def round(self) -> int:
        """Number of the round planned last; 0 before the first."""
        return self._round

    @property
    def results(self) -> list[PairResult]:
        """One result per tested pair, in order: a fault if there was one, else the median."""
        return [_typical(results) for results in self._results.values()]

    def next_round(self) -> list[Pair]:
        """Pairs to test now, [] when the test is complete."""
        if self._round >= MAX_ROUNDS:
            return []
        pairs = self._again() if self._round else self._neighbours()
        self._round += bool(pairs)
        return pairs

    def add(self, result: PairResult) -> None:
        """Take a result of a pair; it may be one of several."""
        self._results.setdefault(result.key, []).append(result)

    def bad(self) -> set[frozenset[str]]:
        """The pairs that failed, summed wrongly or are slow in relation to the good ones."""
        return {r.key for r in self.results if r.fault} | {r.key for r in self._slow()}

    def doubtful(self) -> list[Pair]:
        """Pairs to measure again before a slow one is believed: the slow, and the one they are held against.

        What else happens on the machines and between them makes a single measurement slow, or, for the
        fastest of all, lucky. [] when nothing is slow, or all have been measured often enough.
        """
        slow = self._slow()
        if not slow:
            return []
        reference = self._reference(self._good())
        return [(r.a, r.b) for r in [*slow, reference] if len(self._results[r.key]) < _MEASUREMENTS]

    def _slow(self) -> list[PairResult]:
        good = self._good()
        if not good:
            return []
        limit = _seconds(self._reference(good)) / self._least
        return [result for result in good if _seconds(result) > limit]

    def _good(self) -> list[PairResult]:
        return sorted((result for result in self.results if not result.fault), key=_seconds)

    def _reference(self, good: list[PairResult]) -> PairResult:
        """Speed of a good pair: the best of a few, since most may be bad; the upper quartile of many."""
        return good[0 if len(good) < _FEW_RESULTS else (len(good) - 1) // 4]

    def conclude(self) -> Conclusion:
        """The verdict on all nodes and links as far as results go."""
        bad = self.bad()
        good = self._known_good(bad)
        convicted = self._convicted(bad, good)
        links, undecided = [], []
        for result in self.results:
            if result.key not in bad:
                continue
            if good.issuperset(result.key):
                links.append((result.a, result.b))
            elif not convicted & result.key:
                undecided.append((result.a, result.b))
        measured = frozenset().union(*self._results)
        return Conclusion(
            convicted=tuple(node for node in self._nodes if node in convicted),
            links=tuple(links),
            undecided=tuple(undecided),
            unmeasured=tuple(node for node in self._nodes if node not in measured),
        )

    def _neighbours(self) -> list[Pair]:
        """(0, 1), (2, 3), ...; an odd one out is paired with the first node too."""
        nodes = self._nodes
        pairs = [(nodes[i], nodes[i + 1]) for i in range(0, len(nodes) - 1, 2)]
        if len(nodes) % 2 and len(nodes) > 1:
            pairs.append((nodes[-1], nodes[0]))
        return pairs

    def _again(self) -> list[Pair]:
        bad = self.bad()
        good = self._known_good(bad)
        convicted = self._convicted(bad, good)
        open_nodes = [node for node in self._nodes if node not in convicted]
        suspects = [node for node in open_nodes if node not in good]
        used: set[str] = set()
        pairs = self._match(suspects, good, used)
        if len(self._nodes) <= SMALL or (suspects and not good):
            pairs += self._match(open_nodes, set(open_nodes), used)
        return pairs

    def _match(self, nodes: list[str], partners: set[str], used: set[str]) -> list[Pair]:
        """Pairs of a node and the nearest partner it was not tested with, each node at most once."""
        pairs = []
        for node in nodes:
            if node in used:
                continue
            for other in self._from(node):
                if other in partners and other not in used and frozenset((node, other)) not in self._results:
                    used.update((node, other))
                    pairs.append((node, other))
                    break
        return pairs

    def _from(self, node: str) -> Iterable[str]:
        """The other nodes, from the next one on and around."""
        at = self._nodes.index(node)
        return self._nodes[at + 1 :] + self._nodes[:at]

    def _known_good(self, bad: set[frozenset[str]]) -> set[str]:
        return {node for key in self._results if key not in bad for node in key}

    def _convicted(self, bad: set[frozenset[str]], good: set[str]) -> set[str]:
        """Nodes of at least two pairs, all bad, at least one of them with a node known to be good."""
        partners: dict[str, set[str]] = {}
        for key in bad:
            for node in key - good:
                partners.setdefault(node, set()).update(key - {node})
        return {node for node, others in partners.items() if len(others) > 1 and others & good}


def waves(pairs: Sequence[Pair], at_once: int) -> list[list[Pair]]:
    """Split a round so that no node is in two pairs at once, and at most `at_once` pairs run together."""
    found: list[list[Pair]] = []
    for pair in pairs:
        for wave in found:
            if len(wave) < at_once and not any(set(pair) & set(other) for other in wave):
                wave.append(pair)
                break
        else:
            found.append([pair])
    return found


def _typical(results: list[PairResult]) -> PairResult:
    """One result of several: a fault if there was one, else the median (of two, the faster)."""
    fault = next((result for result in results if result.fault), None)
    return fault or sorted(results, key=_seconds)[(len(results) - 1) // 2]


def _seconds(result: PairResult) -> float:
    return result.seconds if result.seconds is not None else float("inf")
