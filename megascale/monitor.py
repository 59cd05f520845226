"""Progress from any training script: `from megascale import monitor`, one line per step.

    monitor.step(step, loss=loss.item())     after every completed optimizer step
    monitor.metric("accuracy", 0.93)         joins the metrics of the next step
    with monitor.phase("evaluation"): ...    anything that takes much longer than a step

What it buys: progress in `megascale status`, step metrics in `metrics.jsonl`, and detection of hangs, whose
bounds are learnt from the script's own step times. Outside of a MegaScale job ($MEGASCALE_RANK_FILE is not
set) every call does nothing, so the lines may stay in the script. Nothing here needs torch.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megascale.observe.lines import LineFile
from megascale.observe.rankfile import Control, Phase, RankFile
from megascale.observe.rundir import RunDir


def step(step: int, *, loss: float | None = None, grad_norm: float | None = None, tokens: int = 0) -> None:
    """Report that optimizer step `step` (1-based) is complete; every rank should, rank 0 writes the metrics.

    Args:
        loss, grad_norm: of this step, where this rank knows them.
        tokens: tokens (or samples) the whole job consumed up to here.
    """
    found = reporter()
    if found is not None:
        found.step(step, loss=loss, grad_norm=grad_norm, tokens=tokens)


def phase(name: str) -> PhaseBlock:
    """Say what the script does now; in a `with` the phase before comes back at the end.

    Args:
        name: startup, compile, data, forward, backward, optimizer, checkpoint, evaluation or idle.

    Raises:
        ValueError: another name.
    """
    known = Phase.__members__.get(name.upper())
    if known is None:
        raise ValueError(f'phase "{name}", expected one of {", ".join(p.name.lower() for p in Phase)}')
    found = reporter()
    before = found.enter(known) if found is not None else known
    return PhaseBlock(before)


def metric(name: str, value: float) -> None:
    """Add a value to the metrics line of the next `step` of rank 0."""
    found = reporter()
    if found is not None:
        found.pending[name] = float(value)


def stop_requested() -> bool:
    """Whether the job asks its ranks to save and leave (Ctrl-C, an eviction): save, then exit with code 76.

    Ranks may see the request one step apart: agree on it, for example by an all-reduce, before acting.
    """
    found = reporter()
    return found is not None and found.file.control is Control.SAVE_AND_EXIT


class PhaseBlock:
    """Returned by `phase`; leaving it restores the phase before."""

    def __init__(self, before: Phase) -> None:
        self._before = before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = reporter()
        if found is not None:
            found.enter(self._before)


class Reporter:
    """Writes one rank's record and, on rank 0, the metrics of the job."""

    def __init__(self, path: Path) -> None:
        """Open the record at `path`, which the agent created.

        Raises:
            FileNotFoundError, ValueError: there is no such record.
        """
        self.file = RankFile.open(path)
        self.pending: dict[str, float] = {}
        record = self.file.read()
        self._phase = Phase(record.phase)
        self._rank, self._stamp = record.rank, {"attempt": record.attempt, "term": record.term}
        self._first_step_at = 0.0
        self._last_step_at = 0.0
        run = RunDir(path.parent.parent)
        self._metrics = LineFile(run.metrics_file) if record.rank == 0 else None
        self._job = run.root.name
        self.file.update(pid=os.getpid())

    def enter(self, phase: Phase) -> Phase:
        """Publish the phase; returns the one before."""
        before, self._phase = self._phase, phase
        self.file.update(phase=phase, updated_at=time.monotonic())
        return before

    def step(self, step: int, *, loss: float | None, grad_norm: float | None, tokens: int) -> None:
        """Publish a completed step; the duration of the first one is not known."""
        now = time.monotonic()
        seconds = now - self._last_step_at if self._last_step_at else 0.0
        self._last_step_at, self._first_step_at = now, self._first_step_at or now
        if self._phase is Phase.STARTUP:
            self._phase = Phase.FORWARD
        self.file.update(
            step=step,
            loss=math.nan if loss is None else float(loss),
            grad_norm=math.nan if grad_norm is None else float(grad_norm),
            tokens=tokens,
            phase=self._phase,
            step_seconds=seconds,
            progress_at=now,
            updated_at=now,
            groups_at=self._first_step_at,
            loaded_at=self._first_step_at,
            first_step_at=self._first_step_at,
        )
        if self._metrics is not None:
            self._append(
                self._metrics, {"step": step, "loss": loss, "gradNorm": grad_norm, "tokens": tokens}, seconds
            )
        self.pending.clear()

    def _append(self, metrics: LineFile, values: dict[str, Any], seconds: float) -> None:
        line = {"job": self._job, **self._stamp, "rank": self._rank, **self.pending, **values}
        line |= {"stepSeconds": seconds, "time": time.time()}
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        metrics.append(json.dumps(finite, allow_nan=False))


@functools.cache
def reporter() -> Reporter | None:
    """This process's reporter; None outside of a job."""
    path = os.environ.get("MEGASCALE_RANK_FILE")
    return Reporter(Path(path)) if path else None
