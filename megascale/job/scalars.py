"""Plain YAML scalars: read as YAML 1.2, refused where YAML 1.1 would read something else.

kubectl, Helm and most Python tools read YAML 1.1 (`on` is true, 012 is ten), newer tools YAML 1.2 (`on` is
text, 012 is twelve). A manifest goes through both, so a scalar on which they differ is refused with the
unambiguous ways to write it. `3e-4` is taken as a number, as kubectl does too.
"""

from __future__ import annotations

import math
import re
from typing import Final

Scalar = str | int | float | bool | None

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {
    spelling: word == "true" for word in ("true", "false") for spelling in (word, word.title(), word.upper())
}
_OLD_BOOL: Final = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
TRUTH_ADVICE: Final = frozenset({"write true", "write false"})
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TRAPS: Final = tuple(
    (re.compile(pattern), old, new, advice)
    for pattern, old, new, advice in (
        (r"[-+]?0[0-9_]+", "an octal number", "a decimal one", "write the number without a leading zero"),
        (r"[-+]?0o[0-7_]+", "text", "an octal number", "write the number in decimal"),
        (r"[-+]?0b[01_]+", "a binary number", "text", "write the number in decimal"),
        (
            r"[-+]0x[0-9a-fA-F_]+|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*",
            "a number",
            "text",
            "write the number in decimal",
        ),
        (
            r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?",
            "a number",
            "text",
            "write it without underscores",
        ),
        (
            r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?",
            "a number in base 60",
            "text",
            "write a plain number",
        ),
        (r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", "a date", "text", None),
        (r"<<|=", "an instruction", "text", "write the fields out"),
    )
)
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS: Final = 40


class RefusedScalarError(ValueError):
    """A plain scalar that is not taken; `advice` says how to write what was meant, if that is not text."""

    def __init__(self, message: str, advice: str | None) -> None:
        super().__init__(message)
        self.advice = advice


def read_plain(text: str) -> Scalar:
    """Value of an unquoted scalar.

    Raises:
        RefusedScalarError: YAML 1.1 and 1.2 disagree about it, or no JSON value can hold it.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    _refuse_ambiguous(text)
    if _INT.fullmatch(text) or _HEX.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise RefusedScalarError(f"{text[:12]}... has {len(text)} digits", "write fewer")
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise RefusedScalarError(f"{text} is too large for a number", "write a smaller one")
        return number
    return text


def _refuse_ambiguous(text: str) -> None:
    lower = text.lower()
    if lower in _OLD_BOOL and text in {lower, lower.title(), lower.upper()}:
        raise _two_readings(text, _OLD_BOOL[lower], "text", f"write {_OLD_BOOL[lower]}")
    for pattern, old, new, advice in _TRAPS:
        if pattern.fullmatch(text):
            raise _two_readings(text, old, new, advice)
    if _NOT_FINITE.fullmatch(text):
        raise RefusedScalarError(f"{text} is not a finite number", "write a finite number")


def _two_readings(text: str, old: str, new: str, advice: str | None) -> RefusedScalarError:
    return RefusedScalarError(f"{text} can be read two ways: {old} in YAML 1.1, {new} in YAML 1.2", advice)
