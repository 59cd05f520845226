"""The schema as data: path, type, bounds, default and description of every field, for help and errors."""

from __future__ import annotations

import inspect
import types
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from megascale.job.base import Section, Words
from megascale.job.schema import TrainingJob

_NAMES = {int: "integer", float: "number", bool: "boolean", str: "string", Any: "any"}
_PHRASES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "anything"}
_SIGNS: Final = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One field of the manifest.

    Attributes:
        path: dotted; lists are passed through.
        type: object, integer, number, boolean, string, "[]..." for lists, "map of ...".
        expected: what is allowed, in words.
        default: as written in a file, in words when it depends on other fields; None = the field is required.
        fields: names of the fields inside, camelCase.
    """

    path: str
    type: str
    expected: str
    default: str | None
    description: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A position in the schema: a type, the annotations on it, and the field it came from."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    info: FieldInfo | None = None

    @property
    def section(self) -> type[Section] | None:
        """The section class here, also behind `| None`."""
        inner = _without_none(self.annotation)
        return inner if inspect.isclass(inner) and issubclass(inner, Section) else None

    def child(self, name: str | int) -> Place | None:
        """The place of a field, a list item or a mapping's entry."""
        if self.section is not None:
            info = next((f for f in self.section.model_fields.values() if f.alias == name), None)
            return Place(info.annotation, tuple(info.metadata), info) if info else None
        inner = _without_none(self.annotation)
        if get_origin(inner) is list:
            return Place(get_args(inner)[0])
        if get_origin(inner) is dict:
            return Place(get_args(inner)[1])
        return None

    @property
    def items(self) -> Place:
        """The place of a list's items; any other place is its own."""
        inner = _without_none(self.annotation)
        return Place(get_args(inner)[0]) if get_origin(inner) is list else self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields in a section, camelCase."""
        if self.section is None:
            return ()
        return tuple(str(info.alias) for info in self.section.model_fields.values())


ROOT = Place(TrainingJob)


def find(path: Sequence[str | int], root: Place = ROOT) -> Place | None:
    """The place at `path`, or None when the schema has no such field."""
    place: Place | None = root
    for part in path:
        place = place.child(part) if place else None
    return place


def takes_text(path: Sequence[str | int]) -> bool | None:
    """Whether the field at `path` holds text; None when the schema does not know."""
    place = find(path)
    return None if place is None or place.annotation is Any else is_text(place)


def is_text(place: Place) -> bool:
    """Whether a place holds text."""
    return _type_name(place.annotation) == "string"


@cache
def all_fields() -> Mapping[str, Sequence[str]]:
    """Field name -> dotted paths where the schema has it, outermost first."""
    found: dict[str, list[str]] = {}
    pending: deque[tuple[str, Place]] = deque([("", ROOT)])
    while pending:
        prefix, place = pending.popleft()
        for name in place.items.names:
            path = f"{prefix}.{name}".removeprefix(".")
            found.setdefault(name, []).append(path)
            child = place.items.child(name)
            if child is not None:
                pending.append((path, child))
    return found


def expected(place: Place) -> str:
    """What is allowed here, in words: `a whole number from 1 to 1024`."""
    return _expected(place.annotation, place.metadata)


def explain(path: str, place: Place) -> FieldDoc:
    """Everything `megascale job explain` says about a place."""
    info = place.info
    section = place.section
    words = (info.description if info else None) or (inspect.getdoc(section) if section else None) or ""
    return FieldDoc(
        path=path,
        type=_type_name(place.annotation),
        expected=expected(place),
        default=_default(place),
        description=" ".join(words.split()),
        fields=place.items.names,
    )


def _default(place: Place) -> str | None:
    words = _words(place.metadata)
    if words is not None and words.default is not None:
        return words.default
    if place.info is None or place.info.is_required():
        return None
    if place.section is not None and place.info.default is not None:
        return "{}"
    return show(place.info.get_default(call_default_factory=True))


def show(value: object) -> str:
    """A value as it would be written in a file, cut to a readable length."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
        case dict():
            return "{}" if not value else f"a mapping with {', '.join(map(str, list(value)[:5]))}"
        case list():
            return "[]" if not value else f"a list of {len(value)}"
        case _:
            return str(value)


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    """`X` for `Annotated[X, ...]` and `X | None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        if get_origin(annotation) in {Union, types.UnionType}:
            members = [member for member in get_args(annotation) if member is not type(None)]
            if len(members) == 1:
                annotation = members[0]
                continue
        return annotation


def _words(metadata: Sequence[Any]) -> Words | None:
    return next((item for item in metadata if isinstance(item, Words)), None)


def _expected(annotation: Any, metadata: Sequence[Any]) -> str:  # noqa: ANN401
    words = _words(metadata)
    if words is not None and words.expected is not None:
        return words.expected
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected(arguments[0], (*metadata, *_flatten(annotation.__metadata__)))
    if origin in {Union, types.UnionType}:
        return " or ".join("null" if member is type(None) else _expected(member, ()) for member in arguments)
    if origin is not None:
        return _expected_of(origin, arguments, _length(metadata, "entries"))
    if annotation in _PHRASES:
        return f"{_PHRASES[annotation]}{_bounds(metadata)}{_length(metadata, 'characters')}"
    required = [str(info.alias) for info in annotation.model_fields.values() if info.is_required()]
    optional = f"any of {', '.join(Place(annotation).names)}"
    return f"a section with {', '.join(required) or optional}"


def _expected_of(origin: object, arguments: tuple[Any, ...], length: str) -> str:
    """`_expected` of a literal, list or mapping."""
    if origin is Literal:
        return str(arguments[0]) if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list{length}"
    mapping = f"a mapping{length}"
    return mapping if arguments[1] is Any else f"{mapping} from text to {expected(Place(arguments[1]))}"


def _flatten(metadata: Sequence[Any]) -> list[Any]:
    """Bounds inside `Field(...)` beside the bare annotations."""
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(metadata: Sequence[Any]) -> str:
    """` from 1 to 8` for closed ranges, else ` > 0 and <= 1`."""
    low = next((m for m in metadata if isinstance(m, Ge | Gt)), None)
    high = next((m for m in metadata if isinstance(m, Le | Lt)), None)
    if isinstance(low, Ge) and isinstance(high, Le):
        return f" from {low.ge} to {high.le}"
    parts = [f"{_SIGNS[type(bound)]} {_limit(bound)}" for bound in (low, high) if bound is not None]
    return f" {' and '.join(parts)}" if parts else ""


def _length(metadata: Sequence[Any], unit: str) -> str:
    """` of 1 to 63 characters`"""
    low = next((m.min_length for m in metadata if isinstance(m, MinLen)), 0)
    high = next((m.max_length for m in metadata if isinstance(m, MaxLen)), None)
    if high is None:
        return ""
    return f" of {low} to {high} {unit}" if low else f" of at most {high} {unit}"


def _limit(bound: Ge | Gt | Le | Lt) -> object:
    return getattr(bound, type(bound).__name__.lower())


def _type_name(annotation: Any) -> str:  # noqa: ANN401
    inner = _without_none(annotation)
    origin, arguments = get_origin(inner), get_args(inner)
    if origin in {Union, types.UnionType}:
        return " or ".join(_type_name(member) for member in arguments)
    if origin is Literal:
        return "string"
    if origin is list:
        return f"[]{_type_name(arguments[0])}"
    if origin is dict:
        return "object" if arguments[1] is Any else f"map of {_type_name(arguments[1])}"
    return _NAMES.get(inner, "object")
