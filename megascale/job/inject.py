"""Faults from the command line: `--inject kill-rank:rank=1,step=60`."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from megascale.errors import InputError
from megascale.job.base import did_you_mean
from megascale.job.describe import Place
from megascale.job.document import Document
from megascale.job.faults import Fault
from megascale.job.issues import issues_of

_KINDS: Final = {
    "kill-rank": "killRank",
    "kill-node": "killNode",
    "stop-rank": "stopRank",
    "stop-node": "stopNode",
    "slow-rank": "slowRank",
    "kill-driver": "killDriver",
}
_FIELDS: Final = ("rank", "node", "step", "point")
_EXAMPLE: Final = "for example kill-rank:rank=1,step=60"


def parse_inject(text: str) -> Fault:
    """A fault from `<kind>:<field>=<value>,...`; fields: rank, node, step, point.

    Raises:
        InputError: names what is wrong and what is allowed.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise _wrong(
            text, f'unknown fault "{kind}", expected one of {", ".join(_KINDS)}', did_you_mean(kind, _KINDS)
        )
    data: dict[str, Any] = {"kind": _KINDS[kind]}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise _wrong(text, f'got "{part}", expected field=value, {_EXAMPLE}')
        if name not in _FIELDS:
            raise _wrong(
                text,
                f'unknown field "{name}", expected one of {", ".join(_FIELDS)}',
                did_you_mean(name, _FIELDS),
            )
        if name in data:
            raise _wrong(text, f"{name} is given twice")
        data[name] = int(value) if name in {"rank", "step"} and value.isdecimal() else value
    try:
        return Fault.model_validate(data)
    except ValidationError as error:
        found = issues_of(error, Document("", data), Place(Fault))
        raise _wrong(text, "; ".join(f"{issue.path} {issue.message}" for issue in found)) from error


def _wrong(text: str, message: str, hint: str | None = None) -> InputError:
    return InputError(f'--inject "{text}": {message}{f" ({hint})" if hint else ""}')
