"""One look at a NodeCheck: which nodes to check now, which to release, and what is known of all. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from megascale_operator.checks.verdict import Verdict, verdict_of
from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.quarantine.patches import reason_class
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.records import NodeRecord, PodRecord

_SURE: Final = ("straggler", "hang", "network", "lost")
"""Verdicts that one pass takes back; hardware and wrong numbers need as many as the spec says."""

Result = Literal["passed", "convicted", "unknown", "skipped", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known about one node so far; `rounds` = checks it has passed in a row."""

    result: Result
    reason: str = ""
    rounds: int = 0


@dataclass(slots=True)
class CheckPlan:
    """What to do now.

    Attributes:
        outcomes: by node; start: node and number of its next round; release: nodes that passed.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    start: list[tuple[str, int]] = field(default_factory=list)
    release: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every node has its result."""
        return not any(one.result in ("running", "waiting") for one in self.outcomes.values())

    def count(self, result: Result) -> int:
        return sum(1 for one in self.outcomes.values() if one.result == result)


def targets(spec: NodeCheckSpec, nodes: Iterable[NodeRecord]) -> list[str]:
    """The nodes that are meant, in order."""
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
    """From the check's pods to outcomes and next steps.

    Args:
        nodes: of the cluster; pods: of this check; busy: nodes that run a job, with the name of its pod.
    """
    rounds: defaultdict[str, list[PodRecord]] = defaultdict(list)
    for pod in pods:
        rounds[pod.target].append(pod)
    plan = CheckPlan()
    for name in targets(spec, nodes.values()):
        node = nodes.get(name)
        made = sorted(rounds[name], key=lambda pod: pod.incarnation)
        outcome = _outcome(spec, node, made, busy.get(name, ""), now)
        plan.outcomes[name] = outcome
        if outcome.result == "passed" and node is not None and _is_ours(node) and name not in busy:
            plan.release.append(name)
    free = spec.max_concurrent - plan.count("running")
    waiting = [name for name, outcome in plan.outcomes.items() if outcome.result == "waiting"]
    for name in waiting[: max(0, free)]:
        last = max((pod.incarnation for pod in rounds[name]), default=-1)
        plan.start.append((name, last + 1))
    return plan


def passes_needed(spec: NodeCheckSpec, node: NodeRecord) -> int:
    """How often in a row the node must pass: more than once only to be released."""
    mark = mark_of(node)
    if mark is None or not _is_ours(node):
        return 1
    return 1 if reason_class(mark.reason) in _SURE else spec.release_after_passes


def _is_ours(node: NodeRecord) -> bool:
    """Whether we hold the node in quarantine."""
    mark = mark_of(node)
    return node.tainted or (mark is not None and not mark.overridden)


def _outcome(
    spec: NodeCheckSpec, node: NodeRecord | None, made: list[PodRecord], busy: str, now: float
) -> Outcome:
    if made:
        return _of_rounds(spec, node, [_verdict(spec, pod, now) for pod in made])
    if node is None:
        return Outcome("skipped", "there is no such node")
    if busy:
        return Outcome("skipped", "a job is on the node")
    return Outcome("waiting") if node.ready else Outcome("skipped", "the node is not ready")


def _of_rounds(spec: NodeCheckSpec, node: NodeRecord | None, verdicts: list[Verdict | None]) -> Outcome:
    last = verdicts[-1]
    passed = sum(1 for one in verdicts if one is not None and one.result == "passed")
    if last is None:
        return Outcome("running", rounds=passed)
    if last.result != "passed":
        return Outcome(last.result, last.reason)
    if node is not None and passed < passes_needed(spec, node):
        return Outcome("waiting", rounds=passed)
    return Outcome("passed", last.reason, passed)


def _verdict(spec: NodeCheckSpec, pod: PodRecord, now: float) -> Verdict | None:
    found = verdict_of(pod)
    if found is None and now - pod.created >= spec.timeout_seconds:
        where = "its pod did not start" if pod.phase == "Pending" else "it runs on"
        return Verdict("unknown", f"no verdict after {spec.timeout_seconds} s: {where}")
    return found
