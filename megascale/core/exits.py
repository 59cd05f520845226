"""What an ended rank process means."""

from __future__ import annotations

import signal
from typing import Final

from megascale.core import effects as fx
from megascale.core.events import EffectFailed, RankExited
from megascale.core.lifecycle import stop
from megascale.core.lineage import Commit
from megascale.core.recovery import Fault, reattribute, respond
from megascale.core.state import Plan, Stage
from megascale.core.turn import Turn

EXIT_COMPLETED: Final = 0
EXIT_SAVED_AND_LEFT: Final = 76
_ECHOES: Final = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
)
_ECHO_TYPES: Final = frozenset(
    {"DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionResetError", "BrokenPipeError"}
)


def on_exited(turn: Turn, event: RankExited) -> None:
    """Count good ends; take the first bad one as the fault and later ones as its echoes."""
    record = turn.record
    if event.attempt != record.attempt or turn.node(event.node, event.incarnation) is None:
        return
    if record.stage is Stage.STOPPING:
        _maybe_reattribute(turn, event)
        return
    if not turn.ranks_active() or event.rank in turn.live.exits:
        return
    if event.exit_code in (EXIT_COMPLETED, EXIT_SAVED_AND_LEFT):
        turn.live.exits[event.rank] = event.exit_code
        _maybe_all_left(turn)
        return
    fault = fault_of(event)
    if fault.cause == "checkpoint_corrupt":
        _distrust(turn, event)
    respond(turn, fault)


def _maybe_all_left(turn: Turn) -> None:
    record, exits = turn.record, turn.live.exits
    if len(exits) < len(record.assignment) * turn.policy.ranks_per_node:
        return
    if all(code == EXIT_COMPLETED for code in exits.values()):
        stop(turn, Plan("finish", f"all {turn.policy.steps} steps are done", "completed"))
    elif record.plan is not None:
        stop(turn, record.plan)
    else:
        stop(turn, Plan("relaunch", "ranks saved and left without being asked"))


def _maybe_reattribute(turn: Turn, event: RankExited) -> None:
    incident = turn.record.incident
    if incident is None or event.exit_code in (EXIT_COMPLETED, EXIT_SAVED_AND_LEFT):
        return
    fault = fault_of(event)
    if incident.consequence and not fault.consequence:
        reattribute(turn, fault)


def _distrust(turn: Turn, event: RankExited) -> None:
    """Never restore the damaged commit again."""
    step, attempt = event.error_detail.get("step"), event.error_detail.get("attempt")
    if isinstance(step, int) and isinstance(attempt, int):
        commit = Commit(step, attempt)
        if commit not in turn.record.distrusted:
            turn.record.distrusted.append(commit)
            turn.emit(
                fx.Page, f"checkpoint of step {step}, attempt {attempt} is damaged: {event.error_message}"
            )


def fault_of(event: RankExited) -> Fault:
    """Name the cause of a bad end from its signal or its last words."""
    where = f"rank {event.rank} on {event.node}"
    text = (event.error_message or (event.tail[-1] if event.tail else "")).strip()
    if event.signal is not None:
        name = _signal_name(event.signal)
        cause, reason, echo = "crash", f"{where} was killed by {name}", False
    elif event.error_type == "CheckpointCorruptError":
        cause, reason, echo = "checkpoint_corrupt", f"{where}: {text}", False
    elif event.error_type in _ECHO_TYPES or any(word in text.lower() for word in _ECHOES):
        cause, reason, echo = "crash", f"{where} lost its peers: {_first_line(text)}", True
    elif event.error_type:
        cause, reason, echo = "user_code", f"{where} raised {event.error_type}: {_first_line(text)}", False
    else:
        cause, reason, echo = "crash", f"{where} exited with code {event.exit_code}", False
    return Fault(
        cause,
        reason,
        node=event.node,
        rank=event.rank,
        at=event.at,
        source="injected" if event.injected else "observed",
        consequence=echo,
        evidence=event.tail[-3:],
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else "no message"


def on_effect_failed(turn: Turn, event: EffectFailed, kind: str) -> None:
    """A launch that could not be carried out is a fault of the nodes named."""
    if kind == "Launch" and turn.record.stage is Stage.LAUNCHING:
        node = event.nodes[0] if event.nodes else ""
        respond(turn, Fault("launch_failed", f"launch failed: {event.reason}", node=node, at=turn.now))
