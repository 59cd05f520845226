"""Alerts of a rank to the control plane: single lines on stderr that the agent's log watch recognises."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Final

PREFIX: Final = "megascale.alert "


def alert(kind: str, message: str) -> None:
    """Print an alert for the driver and for people; training goes on.

    Args:
        kind: camelCase name of the class of alert, such as "checkpointSaveFailed".
        message: what happened, for people.
    """
    # One write, so that lines of several writers to the same log do not mix. A log that takes no more lines
    # must not end the rank.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{PREFIX}{json.dumps({'kind': kind, 'message': message})}\n")
        sys.stderr.flush()
