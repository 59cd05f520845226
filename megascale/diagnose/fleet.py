"""The verdict on nodes that were tested together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

from megascale.diagnose.checks import Check, Floor, NodeReport, judge
from megascale.diagnose.pairing import Conclusion, PairResult
from megascale.diagnose.peers import shares

Answers = list[dict[str, Any]]
LEAST_CPU: Final = 0.4
"""Share of its peers' speed that a node must reach. CPUs are shared with others; GPUs are not."""
LEAST_GPU: Final = 0.85
LEAST_CPU_PAIR: Final = 0.33
"""The same for a pair, in relation to the good pairs."""
EXIT_CODES: Final = {
    "healthy": 0,
    "unknown": 0,
    "convicted": 1,
    "link": 1,
    "undecided": 1,
    "unreachable": 3,
}
_MAX_LISTED: Final = 64


def node_checks(
    passes: Sequence[Mapping[str, Answers]], tables: Mapping[str, Mapping[str, Floor]], least: float
) -> dict[str, list[Check]]:
    """Checks by node: any pass's wrong or failed result counts; speeds are held against table and peers.

    Args:
        passes: answers by node, nodes of the same hardware.
        tables: floors by node from the table of hardware.
    """
    single = [{node: judge(answers, {}) for node, answers in one.items()} for one in passes]
    by_check = {name: shares(_speeds(single, name)) for name in _names(single)}
    found: dict[str, list[Check]] = {}
    for node in dict.fromkeys(node for one in passes for node in one):
        found[node] = []
        for name in _names(single):
            mine = [check for one in single for check in one.get(node, ()) if check.name == name]
            share = by_check[name].get(node)
            if mine:
                found[node].append(_combine(mine, share, tables.get(node, {}).get(name), least))
    return found


def _names(passes: Iterable[Mapping[str, list[Check]]]) -> list[str]:
    return list(dict.fromkeys(c.name for one in passes for checks in one.values() for c in checks))


def _speeds(passes: Iterable[Mapping[str, list[Check]]], name: str) -> list[dict[str, float]]:
    return [
        {node: c.value for node, checks in one.items() for c in checks if c.name == name and c.value}
        for one in passes
    ]


def _combine(mine: list[Check], share: float | None, table: Floor | None, least: float) -> Check:
    """One check of one node over all passes."""
    for status in ("wrong", "failed"):
        bad = [check for check in mine if check.status == status]
        if bad:
            times = f" ({len(bad)} of {len(mine)} times)" if len(mine) > 1 else ""
            return replace(bad[0], detail=bad[0].detail + times)
    values = [check.value for check in mine if check.value is not None]
    if not values:
        return mine[0]
    value = median(values)
    if table and value < table.value:
        return replace(mine[0], status="slow", value=value, floor=table)
    if share is None:
        return replace(mine[0], status="ok" if table else "unknown", value=value, floor=table)
    # In the unit of the check, so that people see figures; the judgement is on the share within passes.
    peers = Floor(value * least / share, "peers")
    if share < least:
        return replace(
            mine[0], status="slow", value=value, floor=peers, detail=f"{share:.0%} of its peers' speed"
        )
    return replace(mine[0], status="ok", value=value, floor=peers)


def pair_checks(pairs: Conclusion, results: Iterable[PairResult]) -> dict[str, Check]:
    """The check "pairs" by node: derived from its pairs with other nodes."""
    by_node: dict[str, list[PairResult]] = {}
    for result in results:
        for node in (result.a, result.b):
            by_node.setdefault(node, []).append(result)
    accused = {node for pair in pairs.undecided for node in pair}
    found = {}
    for node, mine in by_node.items():
        if node in pairs.convicted:
            found[node] = _accusation(node, mine)
        else:
            found[node] = Check("pairs", "unknown" if node in accused else "ok")
    return found | {node: Check("pairs", "unknown") for node in pairs.unmeasured}


def _accusation(node: str, results: list[PairResult]) -> Check:
    status = "wrong" if any(r.fault == "wrong" for r in results) else "slow"
    status = "failed" if all(r.fault == "failed" for r in results) else status
    partners = ", ".join((r.b if r.a == node else r.a) for r in results)
    why = next((f"; {r.detail}" for r in results if r.detail), "")
    what = {"wrong": "wrong sums", "slow": "slow", "failed": "no result"}[status]
    return Check("pairs", status, detail=f"{what} with every partner: {partners}{why}")  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FleetReport:
    """The outcome of a test of several nodes.

    Attributes:
        reports: one per node that was reached.
        unreachable: nodes that could not be reached, and why.
        complete: False when the time was up before all was tested.
        bad_pairs: the pairs that failed, summed wrongly or were slow.
    """

    reports: tuple[NodeReport, ...]
    pairs: Conclusion
    results: tuple[PairResult, ...]
    rounds: int
    seconds: float
    complete: bool
    unreachable: Mapping[str, str] = field(default_factory=dict)
    bad_pairs: frozenset[frozenset[str]] = frozenset()

    @property
    def convicted(self) -> list[NodeReport]:
        """The nodes at fault."""
        return [report for report in self.reports if report.verdict == "convicted"]

    @property
    def verdict(self) -> str:
        """A key of EXIT_CODES: the worst that was found."""
        found = (
            ("convicted", bool(self.convicted)),
            ("link", bool(self.pairs.links)),
            ("undecided", bool(self.pairs.undecided)),
            ("unreachable", bool(self.unreachable)),
            ("unknown", not self.complete or any(r.verdict != "healthy" for r in self.reports)),
        )
        return next((name for name, is_so in found if is_so), "healthy")

    def document(self) -> dict[str, Any]:
        """As JSON values; lists of pairs are cut at 64."""
        return {
            "verdict": self.verdict,
            "convicted": [report.node for report in self.convicted],
            "links": [list(pair) for pair in self.pairs.links[:_MAX_LISTED]],
            "undecided": [list(pair) for pair in self.pairs.undecided[:_MAX_LISTED]],
            "unreachable": dict(self.unreachable),
            "complete": self.complete,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 2),
            "nodes": [report.document() for report in self.reports],
            "pairs": [
                {
                    "nodes": [r.a, r.b],
                    "round": r.round,
                    "seconds": r.seconds,
                    "fault": r.fault,
                    "detail": r.detail,
                }
                for r in self.results
            ],
        }
