"""Finds the field that a person names: `spec.runtime.megatron.optimizer`, `spec.faults[0].rank`, `lr`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megascale.errors import InputError
from megascale.job.base import nearest
from megascale.job.describe import ROOT, FieldDoc, Place, all_fields, explain

_KIND = re.compile(r"trainingjobs?(\.|$)", re.IGNORECASE)
_INDEX = re.compile(r"\[[0-9]*\]")


@dataclass(frozen=True, slots=True)
class Explained:
    """A field and the fields inside it."""

    field: FieldDoc
    children: tuple[FieldDoc, ...]


def look_up(text: str) -> Explained:
    """What the schema says about the field that `text` names; "" is the manifest itself.

    Lists are passed through: `spec.faults.rank` is the rank of any of them.

    Raises:
        InputError: there is no such field; names the nearest.
    """
    path, place = "", ROOT
    for name in filter(None, _KIND.sub("", _INDEX.sub("", text.strip())).split(".")):
        child = place.items.child(name)
        if child is None:
            raise InputError(_unknown(name, path, place.items))
        path, place = f"{path}.{name}".removeprefix("."), child
    inside = place.items
    children = [(name, inside.child(name)) for name in inside.names]
    return Explained(
        explain(path or "TrainingJob", place),
        tuple(explain(f"{path}.{name}".removeprefix("."), child) for name, child in children if child),
    )


def _unknown(name: str, path: str, place: Place) -> str:
    where = f"in {path}" if path else "at the top level"
    message = f'unknown field "{name}" {where}'
    meant = nearest(name, place.names)
    if meant is not None:
        return f"{message}: did you mean {f'{path}.{meant}'.removeprefix('.')}?"
    everywhere = all_fields()
    elsewhere = everywhere.get(nearest(name, everywhere) or "", ())
    if elsewhere:
        return f"{message}: did you mean {' or '.join(elsewhere[:3])}?"
    return f"{message}: it has {', '.join(place.names)}" if place.names else f"{message}: it has no fields"
