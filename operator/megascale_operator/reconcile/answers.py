"""The operator's answers to a driver's requests, as `status.operator` keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.job import Job

QUARANTINE: Final = "quarantine"
_KEPT_REFUSALS: Final = 20
_KEPT_GRANTS: Final = 64


def refusals(job: Job, current: Sequence[Obj], granted: Iterable[tuple[str, str]], now: float) -> list[Obj]:
    """Return the refused requests, oldest first, each with the time of the refusal.

    The current ones come with the last 20 of quarantines that the driver no longer requests: a driver
    withdraws a request when it has read the answer.

    Args:
        current: refusals of the requests of now, without `time`.
        granted: (node, incident) of granted quarantines, which take the place of an earlier refusal.
        now: Unix seconds.
    """
    answered = {*granted, *(_about(one) for one in current)}
    past = [one for one in _stated(job, "refusals") if one.get("request") == QUARANTINE]
    return _answers(_stated(job, "refusals"), past, current, answered, _KEPT_REFUSALS, now)


def grants(job: Job, current: Iterable[tuple[str, str]], refused: Iterable[Obj], now: float) -> list[Obj]:
    """Return the granted quarantines, oldest first, each with the time of the answer; at most 64.

    Args:
        current: (node, incident) of granted requests of now.
        refused: refused requests of now, which take the place of an earlier grant.
        now: Unix seconds.
    """
    listed = [{"node": node, "incident": incident} for node, incident in current]
    answered = {_about(one) for one in (*listed, *refused)}
    stated = _stated(job, "quarantined")
    return _answers(stated, stated, listed, answered, _KEPT_GRANTS, now)


def _answers(
    stated: Sequence[Obj],
    past: Iterable[Obj],
    current: Sequence[Obj],
    answered: set[tuple[str, str]],
    kept: int,
    now: float,
) -> list[Obj]:
    """Return all current answers, and as many of the newest past ones as fit in `kept`."""
    timed = [{**one, "time": _since(one, stated) or stamp(now)} for one in current]
    rest = [one for one in past if _about(one) not in answered]
    room = max(0, kept - len(timed))
    return sorted([*rest[len(rest) - min(room, len(rest)) :], *timed], key=lambda one: str(one.get("time")))


def _since(answer: Obj, stated: Iterable[Obj]) -> str:
    """Return the time of the same answer in the status, "" if it is not there."""
    same = (one for one in stated if all(one.get(key) == value for key, value in answer.items()))
    return str(next(same, {}).get("time") or "")


def _about(answer: Obj) -> tuple[str, str]:
    return str(answer.get("node", "")), str(answer.get("incident", ""))


def _stated(job: Job, key: str) -> list[Any]:
    return list((job.status.get("operator") or {}).get(key) or ())
