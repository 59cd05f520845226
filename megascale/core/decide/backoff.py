"""How long a restart waits that follows others without progress between them."""

from __future__ import annotations

import zlib
from typing import Final

from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.state.context import StepContext

RESET_S: Final = 600.0
"""A script that reports no steps has made progress if it ran so long, as a container has in Kubernetes."""
_FIRST_S: Final = 1.0
_DOUBLED_AT_MOST: Final = 16
_CAUSES: Final = frozenset({Cause.CRASH, Cause.USER_CODE, Cause.LAUNCH_FAILED, Cause.PLANNED})
_ACTIONS: Final = frozenset({Action.RESTART_IN_PLACE, Action.RESTART_CONTAINER})


def backoff_s(ctx: StepContext, cause: Cause, action: Action) -> float:
    """Seconds to wait before this restart, which `restarts_in_row` counts already; 0.0 for the first.

    Full jitter: any time up to a bound that doubles. It follows from the attempt and the time of the event,
    so that a replay finds the same.
    """
    again = ctx.record.restarts_in_row - 2
    if again < 0 or cause not in _CAUSES or action not in _ACTIONS:
        return 0.0
    bound_s = min(ctx.policy.backoff_limit_s, _FIRST_S * float(1 << min(again, _DOUBLED_AT_MOST)))
    share = zlib.crc32(f"{ctx.record.attempt} {ctx.now}".encode()) / float(1 << 32)
    return bound_s * share
