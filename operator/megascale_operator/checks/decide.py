"""Compute the plan for one NodeCheck: nodes to check now, nodes to release, and results so far. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from megascale.core.api import Cause
from megascale_operator.checks.verdict import Verdict, verdict_of
from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.records import NodeRecord, PodRecord

_SINGLE_PASS_CAUSES: Final = (Cause.STRAGGLER, Cause.HANG, Cause.NODE_LOST)
"""Causes of a quarantine after which one passed check releases the node; after the others it takes as many as
`releaseAfterPasses`."""

_BUSY: Final = "a job is on the node"

Result = Literal["passed", "convicted", "unknown", "skipped", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one node so far; `rounds` is the number of consecutive checks it has passed."""

    result: Result
    reason: str = ""
    rounds: int = 0


@dataclass(slots=True)
class CheckPlan:
    """Results so far and what to do next.

    Attributes:
        outcomes: by node.
        start: (node, round number) of the check pods to create.
        release: quarantined nodes that passed.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    start: list[tuple[str, int]] = field(default_factory=list)
    release: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every node has a final result."""
        return not any(one.result in ("running", "waiting") for one in self.outcomes.values())

    def count(self, result: Result) -> int:
        return sum(1 for one in self.outcomes.values() if one.result == result)


def targets(spec: NodeCheckSpec, nodes: Iterable[NodeRecord]) -> list[str]:
    """Return the sorted names of the nodes that the spec lists or selects."""
    if spec.nodes is not None:
        return sorted(spec.nodes)
    wanted = (spec.node_selector or {}).items()
    return sorted(node.name for node in nodes if wanted <= dict(node.labels).items())


def plan_check(
    spec: NodeCheckSpec,
    nodes: Mapping[str, NodeRecord],
    pods: Iterable[PodRecord],
    busy: Mapping[str, str],
    now: float,
) -> CheckPlan:
    """Compute results and next steps from the check's pods.

    Args:
        nodes: all nodes of the cluster by name.
        pods: the check's pods.
        busy: nodes that run a slot pod, with the name of that pod; they are not checked.
        now: Unix seconds.
    """
    rounds: defaultdict[str, list[PodRecord]] = defaultdict(list)
    for pod in pods:
        rounds[pod.target].append(pod)
    plan = CheckPlan()
    for name in targets(spec, nodes.values()):
        node = nodes.get(name)
        check_pods = sorted(rounds[name], key=lambda pod: pod.incarnation)
        outcome = _outcome(spec, node, check_pods, busy.get(name, ""), now)
        plan.outcomes[name] = outcome
        if outcome.result == "passed" and node is not None and _is_quarantined(node) and name not in busy:
            plan.release.append(name)
    free = spec.max_concurrent - plan.count("running")
    waiting = [name for name, outcome in plan.outcomes.items() if outcome.result == "waiting"]
    for name in waiting[: max(0, free)]:
        last = max((pod.incarnation for pod in rounds[name]), default=-1)
        plan.start.append((name, last + 1))
    return plan


def passes_needed(spec: NodeCheckSpec, node: NodeRecord) -> int:
    """Return how many consecutive checks the node must pass; more than one only if it is quarantined."""
    mark = mark_of(node)
    if mark is None or not _is_quarantined(node):
        return 1
    return 1 if mark.cause in _SINGLE_PASS_CAUSES else spec.release_after_passes


def _is_quarantined(node: NodeRecord) -> bool:
    """Return whether the operator holds the node in quarantine."""
    mark = mark_of(node)
    return node.tainted or (mark is not None and not mark.overridden)


def _quarantined_since(node: NodeRecord | None) -> float:
    """Return when the node's quarantine began in Unix seconds, 0 if it is not in quarantine."""
    mark = mark_of(node) if node is not None and _is_quarantined(node) else None
    return mark.since if mark else 0.0


def _outcome(
    spec: NodeCheckSpec, node: NodeRecord | None, check_pods: list[PodRecord], busy: str, now: float
) -> Outcome:
    if check_pods:
        outcome = _outcome_of_rounds(spec, node, check_pods, now)
        return Outcome("skipped", _BUSY) if busy and outcome.result == "waiting" else outcome
    if node is None:
        return Outcome("skipped", "there is no such node")
    if busy:
        return Outcome("skipped", _BUSY)
    return Outcome("waiting") if node.ready else Outcome("skipped", "the node is not ready")


def _outcome_of_rounds(
    spec: NodeCheckSpec, node: NodeRecord | None, check_pods: list[PodRecord], now: float
) -> Outcome:
    """Return the result of a node's rounds; those from before its quarantine do not count as passed."""
    since = _quarantined_since(node)
    verdicts = [_verdict(spec, pod, now) for pod in check_pods]
    last = verdicts[-1]
    passed = sum(
        1
        for pod, one in zip(check_pods, verdicts, strict=True)
        if one is not None and one.result == "passed" and pod.created > since
    )
    if last is None:
        return Outcome("running", rounds=passed)
    if last.result != "passed":
        return Outcome(last.result, last.reason)
    if node is not None and passed < passes_needed(spec, node):
        return Outcome("waiting", rounds=passed)
    return Outcome("passed", last.reason, passed)


def _verdict(spec: NodeCheckSpec, pod: PodRecord, now: float) -> Verdict | None:
    verdict = verdict_of(pod)
    if verdict is None and now - pod.created >= spec.timeout_seconds:
        where = "its pod did not start" if pod.phase == "Pending" else "its pod is still running"
        return Verdict("unknown", f"no verdict after {spec.timeout_seconds} s: {where}")
    return verdict
