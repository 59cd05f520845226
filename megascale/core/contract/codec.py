"""Dataclasses to and from plain JSON values, driven by their type hints.

Used for the event log, the job record and golden transcripts, so a value that goes out must come back
equal. Non-finite floats become the strings "nan", "inf", "-inf": JSON has no numbers for them.
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
_PLAIN = frozenset({str, int, bool, types.NoneType})


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
        told: dict[str, Json] = {}
        for name, default, factory in fields:
            item = getattr(value, name)
            if item == default or (factory is not None and item == factory()):
                continue
            told[name] = item if type(item) in _PLAIN else encode(item)
        return told
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
            None if each.default_factory is dataclasses.MISSING else each.default_factory,
        )
        for each in dataclasses.fields(kind)
    )


def decode(kind: type[T], data: Json) -> T:
    """The inverse of `encode` for a dataclass type.

    Raises:
        ValueError: `data` does not fit `kind`.
    """
    decoded: T = _decode(kind, data)
    return decoded


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(kind: Any, data: Json) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if data is None else _decode(options[0], data) if len(options) == 1 else data
    if origin is not None:
        return _decode_container(origin, get_args(kind), data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and isinstance(data, int | float | str):
        return float(data)
    if kind is Any or (isinstance(kind, type) and isinstance(data, kind)):
        return data
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {data!r}")


def _decode_dataclass(kind: Any, data: Json) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        raise ValueError(f"expected {kind.__name__}, got {data!r}")
    hints = _hints(kind)
    unknown = data.keys() - hints.keys()
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    return kind(**{name: _decode(hints[name], item) for name, item in data.items()})


def _decode_container(origin: Any, arguments: tuple[Any, ...], data: Json) -> Any:  # noqa: ANN401
    if isinstance(data, dict) and issubclass(origin, Mapping):
        key, item = arguments
        return {(int(k) if key is int else k): _decode(item, v) for k, v in data.items()}
    if isinstance(data, list):
        if origin is tuple and len(arguments) == 2 and arguments[1] is not Ellipsis:
            return tuple(_decode(kind, v) for kind, v in zip(arguments, data, strict=True))
        return origin(_decode(arguments[0], v) for v in data)
    raise ValueError(f"expected {origin.__name__}, got {data!r}")
