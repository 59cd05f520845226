"""Numbers of one optimizer step that the CPU path and the Triton kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Factors:
    """Coefficients of LAMB for one parameter group at one step.

    Attributes:
        correction1, correction2: divisors 1 - beta^t of the first and second moment, which undo that both
            start at zero.
    """

    beta1: float
    beta2: float
    correction1: float
    correction2: float
    eps: float
    weight_decay: float

    @classmethod
    def of(cls, group: dict[str, Any], updates: float) -> Factors:
        """The factors of the optimizer group `group` at its update number `updates`, counted from 1."""
        beta1, beta2 = group["betas"]
        corrections = (1 - beta1**updates, 1 - beta2**updates)
        return cls(beta1, beta2, *corrections, group["eps"], group["weight_decay"])
