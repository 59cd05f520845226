"""Names of a recovery's stages in one word or two, as `megascale run` and `kubectl megascale` print them."""

from __future__ import annotations

from typing import Final

from megascale.core.contract.vocabulary import Milestone

STAGE_LABELS: Final = (
    (Milestone.DETECTED, "detect"),
    (Milestone.DECIDED, "decide"),
    (Milestone.STOPPED, "stop"),
    (Milestone.LAUNCHED, "launch"),
    (Milestone.GROUPS, "groups"),
    (Milestone.LOADED, "load"),
    (Milestone.FIRST_STEP, "first step"),
    (Milestone.BACK_TO_SPEED, "back to speed"),
)
"""The milestone that ends each stage, and the stage's label, in order."""
