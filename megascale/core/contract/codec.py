"""Dataclasses to and from plain JSON values, driven by their type hints.

Used for the event log, the job record and golden transcripts, so a value that goes out must come back
equal. Non-finite floats become the strings "nan", "inf", "-inf": JSON has no numbers for them.

What another version of the program wrote is read as far as this version knows it:

- a field that is not known is ignored, one that is missing takes its default;
- a value that a `StrEnum` does not have is kept as text in a member of its own, for which `is_known` is
  False: it compares equal to no member, and is written back as it was read;
- an empty text where text or None is expected is None, as older versions wrote it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
T = TypeVar("T")
S = TypeVar("S", bound=enum.StrEnum)
_PLAIN = frozenset({str, int, bool, types.NoneType})
_MISSING = dataclasses.MISSING


def encode(value: Any) -> Json:  # noqa: ANN401 - any dataclass tree
    """`value` as JSON values; fields that equal their default are left out."""
    kind: type = type(value)
    if kind in _PLAIN:
        plain: Json = value
        return plain
    if kind is float:
        return value if math.isfinite(value) else str(value)
    fields = _fields_of(kind)
    if fields is not None:
        # A loop, not a comprehension with a helper: every heartbeat of every node is written to the log.
        encoded: dict[str, Json] = {}
        for name, default, factory in fields:
            item = getattr(value, name)
            if item == default or (factory is not None and item == factory()):
                continue
            encoded[name] = item if type(item) in _PLAIN else encode(item)
        return encoded
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return encode(value.value) if isinstance(value, enum.Enum) else _encode_container(value)


def _encode_container(value: object) -> Json:
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        # Lists of names run to thousands; most values are not containers of containers.
        return [item if type(item) in _PLAIN else encode(item) for item in items]
    raise TypeError(f"cannot encode {type(value).__name__}")


@cache
def _fields_of(kind: type) -> tuple[tuple[str, Any, Callable[[], Any] | None], ...] | None:
    """Name, default (MISSING equals nothing) and factory of a dataclass's fields, None for any other type."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(
        (
            each.name,
            each.default,
            None if each.default_factory is _MISSING else each.default_factory,
        )
        for each in dataclasses.fields(kind)
    )


def decode(kind: type[T], data: Json) -> T:
    """The inverse of `encode` for a dataclass type.

    Raises:
        ValueError: `data` does not fit `kind`, or lacks a field that has no default.
    """
    decoded: T = _decode(kind, data)
    return decoded


def as_member(kind: type[S], text: str) -> S:
    """The member for `text`; one of its own, equal to no other, where the enum has none."""
    try:
        return kind(text)
    except ValueError:
        unknown = str.__new__(kind, text)
        unknown._name_ = unknown._value_ = text
        return unknown


def is_known(value: enum.StrEnum) -> bool:
    """Whether `value` is a member that its enum defines, and not text that another version wrote."""
    return type(value).__members__.get(value.name) is value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(kind: Any, data: Json) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_optional([option for option in get_args(kind) if option is not type(None)], data)
    if origin is not None:
        return _decode_container(origin, get_args(kind), data)
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum) and isinstance(data, str):
        return as_member(kind, data)
    if kind is float and isinstance(data, int | float | str):
        return _as_float(data)
    if kind is Any or (isinstance(kind, type) and isinstance(data, kind)):
        return data
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {data!r}")


def _as_float(data: float | str) -> float:
    try:
        return float(data)
    except OverflowError as error:
        raise ValueError("a number of more than 308 digits") from error


def _decode_optional(options: list[Any], data: Json) -> Any:  # noqa: ANN401
    if data is None or len(options) != 1:
        return data
    (option,) = options
    is_text = isinstance(option, type) and issubclass(option, str)
    return None if data == "" and is_text else _decode(option, data)


@cache
def _required(kind: type) -> frozenset[str]:
    """Names of the fields that have no default."""
    fields = _fields_of(kind) or ()
    return frozenset(name for name, default, factory in fields if default is _MISSING and factory is None)


def _decode_dataclass(kind: Any, data: Json) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        raise ValueError(f"expected {kind.__name__}, got {data!r}")
    missing = _required(kind) - data.keys()
    if missing:
        raise ValueError(f"{kind.__name__} lacks {', '.join(sorted(missing))}")
    hints = _hints(kind)
    return kind(
        **{name: _decode_field(name, hints[name], item) for name, item in data.items() if name in hints}
    )


def _decode_field(name: str, kind: Any, data: Json) -> Any:  # noqa: ANN401
    try:
        return _decode(kind, data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _decode_container(origin: Any, arguments: tuple[Any, ...], data: Json) -> Any:  # noqa: ANN401
    if isinstance(data, dict) and issubclass(origin, Mapping):
        key, item = arguments
        return {_decode_key(key, k): _decode(item, v) for k, v in data.items()}
    if isinstance(data, list):
        if origin is tuple and len(arguments) == 2 and arguments[1] is not Ellipsis:
            return tuple(_decode(kind, v) for kind, v in zip(arguments, data, strict=True))
        return origin(_decode(arguments[0], v) for v in data)
    raise ValueError(f"expected {origin.__name__}, got {data!r}")


def _decode_key(kind: Any, key: str) -> Any:  # noqa: ANN401
    """Keys are text in JSON, whatever they were."""
    return int(key) if kind is int else _decode(kind, key)
