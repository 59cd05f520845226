"""Turns pydantic's errors into issues that name the value, what is allowed, and the nearest known name."""

from __future__ import annotations

from typing import Any, Final, Literal, get_origin

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from megascale.errors import ManifestIssue
from megascale.job.base import PROBLEMS, Problem, did_you_mean, nearest
from megascale.job.describe import ROOT, Place, all_fields, expected, explain, find, is_text, show
from megascale.job.document import Document, Path, dotted
from megascale.job.schema import Command

_NOT_SAID = "default_factory_not_called"
_MOST_DETAILS: Final = 100


def issues_of(error: ValidationError, source: Document, root: Place = ROOT) -> list[ManifestIssue]:
    """One issue per wrong field, in the order of the file; `root` is what `source` should be.

    Of more than a hundred it names the first, and their number.
    """
    found: dict[Path, ManifestIssue] = {}
    # rules between fields mislead while a field of the file could not be read
    unsaid = {_NOT_SAID, PROBLEMS} if source.issues else {_NOT_SAID}
    details = [detail for detail in error.errors(include_url=False) if detail["type"] not in unsaid]
    left_out, details = len(details) - _MOST_DETAILS, details[:_MOST_DETAILS]
    explained = {path for detail in details for path in _meant_fields(detail, root)}
    for detail in details:
        if detail["type"] == "missing" and tuple(detail["loc"]) in explained:
            continue
        for path, message, hint in _describe(detail, source.data, root):
            issue = ManifestIssue(dotted(path), message, source.file or None, source.line_of(path), hint)
            if not any(path[: len(known)] == known for known in source.issues):
                found.setdefault(path, issue)
    issues = sorted(found.values(), key=lambda issue: issue.line or 0)
    if left_out > 0:
        message = f"{left_out} more fields are wrong; correct those above first"
        issues.append(
            ManifestIssue("file", message, source.file or None, issues[-1].line if issues else None)
        )
    return issues


def _meant_fields(detail: ErrorDetails, root: Place) -> list[Path]:
    """The field an unknown one was meant to be; that field is not reported as missing too."""
    if detail["type"] != "extra_forbidden":
        return []
    *section, name = detail["loc"]
    place = find(section, root)
    meant = nearest(str(name), place.names) if place else None
    return [(*section, meant)] if meant else []


def _describe(detail: ErrorDetails, data: object, root: Place) -> list[tuple[Path, str, str | None]]:
    """Path, message and hint of each issue behind one of pydantic's errors."""
    location = tuple(detail["loc"])
    if detail["type"] == PROBLEMS:
        problems: list[Problem] = detail["ctx"][PROBLEMS]
        return [((*location, *problem.path), problem.message, problem.hint) for problem in problems]
    if detail["type"] == "extra_forbidden":
        return [(location, *_unknown_field(location, root))]
    if detail["type"] == "missing":
        return [(location, *_missing_field(location, root))]
    path = _path_in(location, data)
    place = find(path, root)
    if place is None:
        return [(path, detail["msg"], None)]
    return [(path, *_wrong_value(detail["input"], place))]


def _path_in(location: Path, data: Any) -> Path:  # noqa: ANN401
    """`location` without the names of union members that pydantic appends."""
    path: list[str | int] = []
    for part in location:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not in_list and not (isinstance(data, dict) and part in data):
            break
        data = data[part]
        path.append(part)
    return tuple(path)


def _unknown_field(path: Path, root: Place) -> tuple[str, str | None]:
    *section, name = path
    place = find(section, root)
    known = place.names if place else ()
    where = dotted(tuple(section)) or "the top level"
    if hint := did_you_mean(str(name), known):
        return f'unknown field "{name}"', hint
    elsewhere = all_fields().get(to_camel(str(name)), ())
    if elsewhere:
        return f'unknown field "{name}" in {where}', f"did you mean {' or '.join(elsewhere[:3])}?"
    return f'unknown field "{name}"', f"{where} knows {', '.join(known)}"


def _missing_field(path: Path, root: Place) -> tuple[str, str | None]:
    place = find(path, root)
    if place is None:
        return "is required", None
    wanted = expected(place)
    if path[-3:-1] == ("megatron", "model"):
        return f"is required, expected {wanted}", "or name a preset: model: {preset: tiny}"
    if get_origin(place.annotation) is Literal:
        return "is required", f"add {path[-1]}: {wanted}"
    meaning = explain("", place).description.split(". ")[0].rstrip(".")
    is_acronym = meaning[1:2].isupper()
    return f"is required, expected {wanted}", meaning if is_acronym else meaning[:1].lower() + meaning[1:]


def _wrong_value(value: object, place: Place) -> tuple[str, str | None]:
    wanted = expected(place)
    if value is None:
        default = explain("", place).default
        meaning = "defaults" if place.section else f"default {default}"
        return f"is empty, expected {wanted}", f"leave it out for the {meaning}" if default else None
    hint = _hint(value, wanted)
    if isinstance(value, str) and place.section is Command:
        hint = f"write {{args: [{', '.join(value.split())}]}}"
    if isinstance(value, int | float) and is_text(place):
        hint = f'write "{show(value)}" in quotes'
    return f"got {show(value)}, expected {wanted}", hint


def _hint(value: object, wanted: str) -> str | None:
    """What to write instead of `value`."""
    if isinstance(value, str) and wanted.startswith("a list"):
        return f"write [{', '.join(value.split())}]"
    if isinstance(value, str) and wanted.startswith(("a whole number", "a number", "true or false")):
        return "remove the quotes" if _is_bare(value, wanted) else None
    if isinstance(value, str) and wanted.startswith("one of "):
        return did_you_mean(value, wanted.removeprefix("one of ").split(", "))
    if isinstance(value, float) and wanted.startswith("a whole number") and value.is_integer():
        return f"write {value:.0f}"
    return None


def _is_bare(text: str, wanted: str) -> bool:
    """Whether `text` without its quotes would be the kind of value that is wanted."""
    if wanted.startswith("true"):
        return text in {"true", "false"}
    try:
        number = float(text)
    except ValueError:
        return False
    return wanted.startswith("a number") or number.is_integer()
