"""What is known about one node after its checks, and the verdict. Pure.

"unknown" is a figure that nothing can be held against, or a check that could not be made: never healthy.
Of a CPU by itself no speed is expected: right numbers are enough (decision 0073).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

Status = Literal["ok", "slow", "wrong", "failed", "unknown"]
Verdict = Literal["healthy", "convicted", "unknown"]
MESSAGE_BYTES: Final = 4096
"""What Kubernetes keeps of a container's termination message."""
_MAX_CHECKS: Final = 12
_BASIS: Final = {
    "table": "of this hardware",
    "baseline": "by what was recorded on this node",
    "peers": "by its peers",
}
_DETAIL_CHARACTERS: Final = 120
_REASON_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a healthy part reaches.

    Attributes:
        value: in the check's unit.
        basis: where it comes from: "table" (rated by the vendor), "baseline" (recorded here), "peers".
    """

    value: float
    basis: str


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one node: its worst rank.

    Attributes:
        value: in `unit`, None where there is no figure.
        floor: what was expected at least, None if nothing is known.
        detail: what is wrong and on which rank, "" if nothing is.
    """

    name: str
    status: Status
    value: float | None = None
    unit: str = ""
    floor: Floor | None = None
    detail: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON values; absent = nothing to say."""
        found: dict[str, Any] = {"check": self.name, "status": self.status}
        if self.value is not None:
            found |= {"value": float(f"{self.value:.4g}"), "unit": self.unit}
        if self.floor:
            found |= {"floor": float(f"{self.floor.value:.4g}"), "basis": self.floor.basis}
        if self.detail:
            found["detail"] = self.detail[:_DETAIL_CHARACTERS]
        return found


@dataclass(frozen=True, slots=True)
class NodeReport:
    """All that was found about a node.

    Attributes:
        hardware: model of its accelerators or CPU.
        seconds: how long the checks took.
    """

    node: str
    hardware: str
    checks: tuple[Check, ...] = field(default=())
    seconds: float = 0.0

    @property
    def faults(self) -> list[Check]:
        """The checks that speak against the node, wrong numbers first."""
        order = ("wrong", "failed", "slow")
        bad = [check for check in self.checks if check.status in order]
        return sorted(bad, key=lambda check: order.index(check.status))

    @property
    def verdict(self) -> Verdict:
        """Convicted by any fault; healthy only when every check is ok."""
        if self.faults:
            return "convicted"
        all_ok = bool(self.checks) and all(check.status == "ok" for check in self.checks)
        return "healthy" if all_ok else "unknown"

    @property
    def reason(self) -> str:
        """Why, as a sentence."""
        if self.faults:
            return "; ".join(explain(check) for check in self.faults)
        if self.verdict == "healthy":
            free = ", ".join(one.name for one in self.checks if one.value is not None and not one.floor)
            return f"the numbers are right; nothing says how fast: {free}" if free else "every check passed"
        open_checks = ", ".join(check.name for check in self.checks if check.status == "unknown")
        if not open_checks:
            return "nothing was checked"
        return f"nothing is wrong, but nothing says what to expect here of: {open_checks}"

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "node": self.node,
            "verdict": self.verdict,
            "kind": self.faults[0].status if self.faults else "",
            "reason": self.reason,
            "hardware": self.hardware,
            "seconds": round(self.seconds, 2),
            "checks": [check.document() for check in self.checks],
        }

    def message(self) -> str:
        """The document as one line of JSON of at most 4096 bytes, faults first if some must go."""
        full = self.document() | {"reason": self.reason[:_REASON_CHARACTERS], "node": self.node[:253]}
        full["hardware"] = self.hardware[:_DETAIL_CHARACTERS]
        ranked = [*self.faults, *(check for check in self.checks if check not in self.faults)]
        for count in range(min(len(ranked), _MAX_CHECKS), -1, -1):
            checks = self.checks if count == len(ranked) else ranked[:count]
            text = json.dumps(
                full | {"checks": [check.document() for check in checks]}, separators=(",", ":")
            )
            if len(text) <= MESSAGE_BYTES:
                return text
        raise AssertionError("the bounded fields alone exceed the bound")


def explain(check: Check) -> str:
    """One check as a sentence."""
    if check.status == "slow" and check.value is not None and check.floor:
        return (
            f"{check.name} is slow: {check.value:.3g} {check.unit}, expected at least "
            f"{check.floor.value:.3g} {_BASIS[check.floor.basis]}"
            + (f" ({check.detail})" if check.detail else "")
        )
    what = {"wrong": "gave wrong numbers", "failed": "failed", "slow": "is slow"}.get(
        check.status, check.status
    )
    return f"{check.name} {what}{f': {check.detail}' if check.detail else ''}"


def judge(
    answers: Iterable[Mapping[str, Any]], floors: Mapping[str, Floor], *, needs_floor: bool = True
) -> list[Check]:
    """Checks from the answers of all ranks: of each check the worst rank counts.

    Args:
        answers: per rank `rank` and `measures` (check, value, unit, wrong), or `error`.
        floors: by check; needs_floor: whether a figure without one is unknown, else it is ok.
    """
    found: dict[str, Check] = {}
    for answer in answers:
        where = f"rank {answer['rank']}"
        if answer.get("error"):
            _keep_worse(
                found, Check(answer.get("op", "ranks"), "failed", detail=f"{where}: {answer['error']}")
            )
        for measure in answer.get("measures", ()):
            check = _judge_one(measure, floors.get(measure["check"]), where)
            _keep_worse(
                found, check if needs_floor or check.status != "unknown" else replace(check, status="ok")
            )
    return list(found.values())


def _judge_one(measure: Mapping[str, Any], floor: Floor | None, where: str) -> Check:
    value = measure["value"] if measure["unit"] else None
    base = Check(measure["check"], "ok", value, measure["unit"], floor)
    if measure["wrong"]:
        return replace(base, status="wrong", detail=f"{where}: {measure['wrong']}")
    if value is None:
        return base
    if floor is None:
        return replace(base, status="unknown")
    return replace(base, status="slow", detail=where) if value < floor.value else base


def _keep_worse(found: dict[str, Check], check: Check) -> None:
    order = ("wrong", "failed", "slow", "unknown", "ok")
    known = found.get(check.name)

    def badness(one: Check) -> tuple[int, float]:
        return order.index(one.status), one.value if one.value is not None else 0.0

    if known is None or badness(check) < badness(known):
        found[check.name] = check
