"""`spec.faults`: faults that a job injects into itself, for demonstrations and tests."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from megascale.job.base import Count, Natural, NodeName, Problem, Section, refuse


class Fault(Section):
    """A fault injected for a demonstration or a test."""

    kind: Literal["killRank", "killNode", "stopRank", "stopNode", "slowRank", "killDriver"]
    """kill is SIGKILL, stop is SIGSTOP: of a rank's process, a node's agent with its ranks, or the driver;
    slow makes the forward passes of a rank take three times as long from then on."""
    rank: Natural | None = None
    """Global rank; for killRank, stopRank and slowRank."""
    node: NodeName | None = None
    """Node name, node-0, node-1... on a workstation; for killNode and stopNode."""
    step: Count
    """Step in which the fault happens."""
    point: Literal["step", "save", "commit"] = "step"
    """step: during the step; save: while that step's checkpoint is written; commit: after all of it is
    written, before it is committed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        target = {"Rank": "rank", "Node": "node"}.get(self.kind[-4:])
        given = {"rank": self.rank, "node": self.node}
        problems = []
        for name, value in given.items():
            if name == target and value is None:
                example = "rank: 1" if name == "rank" else "node: node-1"
                problems.append(
                    Problem((name,), f"is required for kind {self.kind}", f"for example {example}")
                )
            if name != target and value is not None:
                instead = f"; name the {target} instead" if target else ""
                problems.append(
                    Problem((name,), f"has no meaning for kind {self.kind}", f"remove it{instead}")
                )
        refuse(problems)
        return self
