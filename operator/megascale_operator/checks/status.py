"""The status of a NodeCheck: counts, and nodes grouped by result and reason, both bounded in size."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from megascale_operator.checks.decide import CheckPlan
from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import Obj

_MAX_GROUPS: Final = 32
_MAX_NODES: Final = 20
_ORDER: Final = ("convicted", "unknown", "skipped", "passed")


def status_of(check: Obj, plan: CheckPlan, now: float) -> Obj:
    """Return the new status; timestamps are kept from the current status if they are set."""
    before: Obj = check.get("status") or {}
    generation = check["metadata"].get("generation", 0)
    total = len(plan.outcomes)
    done = plan.done
    status: Obj = {
        "observedGeneration": generation,
        "state": "Completed" if done else "Running",
        "total": total,
        "running": plan.count("running"),
        "passed": plan.count("passed"),
        "convicted": plan.count("convicted"),
        "unknown": plan.count("unknown"),
        "skipped": plan.count("skipped"),
        "groups": groups(plan),
        "startTime": before.get("startTime") or stamp(now),
        "conditions": [
            _condition(before, generation, "Complete", done, _message(plan, total) if done else "", now),
            _condition(
                before,
                generation,
                "Failed",
                done and not total,
                "" if total else "the spec selects no node",
                now,
            ),
        ],
    }
    if done:
        status["completionTime"] = before.get("completionTime") or stamp(now)
    return status


def groups(plan: CheckPlan) -> list[Obj]:
    """Group nodes by result and reason, the worst result first.

    At most 32 groups are returned, and each names at most 20 nodes but counts all.
    """
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for node, outcome in plan.outcomes.items():
        if outcome.result in _ORDER:
            found[outcome.result, outcome.reason].append(node)
    ranked = sorted(found.items(), key=lambda item: (_ORDER.index(item[0][0]), -len(item[1]), item[0][1]))
    return [
        {"result": result, "reason": reason, "count": len(nodes), "nodes": sorted(nodes)[:_MAX_NODES]}
        for (result, reason), nodes in ranked[:_MAX_GROUPS]
    ]


def _message(plan: CheckPlan, total: int) -> str:
    counts = ", ".join(
        f"{plan.count(result)} {result}" for result in ("passed", "convicted", "unknown", "skipped")
    )
    return f"{total} nodes: {counts}"


def _condition(
    before: Obj,
    generation: int,
    kind: str,
    holds: bool,
    message: str,
    now: float,
) -> Obj:
    old: Obj = next((one for one in before.get("conditions") or () if one["type"] == kind), {})
    status = "True" if holds else "False"
    flipped = old.get("status") != status
    reason = {"Complete": ("Running", "Checked"), "Failed": ("NotFailed", "NoNodes")}[kind][holds]
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": stamp(now) if flipped else old["lastTransitionTime"],
    }
