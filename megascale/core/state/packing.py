"""The job record in few letters: what thousands of nodes may have in common is stored once.

Long lists of nodes are written with their shared prefix and suffix, or as places in the assignment. Shorter
ones stay as they are, and what an older version of the program must not miss (assignment, exclusions, effects
for agents) is under the name it always had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from megascale.core.contract.codec import Json
from megascale.core.contract.names import pack, unpack
from megascale.core.state.record import JobRecord

_WORTH_PACKING: Final = 16
_NAME_LISTS: Final = ("assignment", "spares")
_PACK_EFFECTS: Final[dict[str, Callable[[list[dict[str, Json]]], Json]]] = {
    "Release": lambda asked: pack([str(data["node"]) for data in asked]),
    "Acquire": lambda asked: " ".join(str(data["count"]) for data in asked),
}


def packed(data: dict[str, Json], record: JobRecord) -> dict[str, Json]:
    """`data`, the encoded `record`, with its long lists packed."""
    data = data | {name: pack(getattr(record, name)) for name in _NAME_LISTS if name in data}
    shared = [name for name, loss in record.lost.items() if loss.shared]
    if len(shared) > _WORTH_PACKING:
        at = max(record.lost[name].at for name in shared)
        data["lost"] = _without(data["lost"], shared)
        data["lostTogether"] = {"at": at, "nodes": _places(shared, record.assignment)}
    if len(record.draining) > _WORTH_PACKING:
        leaving = list(record.draining)
        reason = record.draining[leaving[-1]]
        data["draining"] = {}
        data["drainingTogether"] = {"reason": reason, "nodes": _places(leaving, record.assignment)}
    for kind, key in (("Release", "releases"), ("Acquire", "acquires")):
        ids = [effect_id for effect_id, pending in record.pending.items() if pending.kind == kind]
        if len(ids) > _WORTH_PACKING:
            asked = [record.pending[effect_id].data for effect_id in ids]
            data["pending"] = _without(data["pending"], ids)
            data[key] = {"ids": _ranges(map(_number, ids)), "of": _PACK_EFFECTS[kind](asked)}
    return data


def unpacked(data: Mapping[str, Json]) -> dict[str, Json]:
    """The inverse of `packed`; a packed node has the reason of the others it was packed with.

    Raises:
        ValueError: not something that `packed` returns.
    """
    plain = dict(data) | {name: [*unpack(data[name])] for name in _NAME_LISTS if name in data}
    assignment = [str(name) for name in _list(plain.get("assignment"))]
    if lost := _dict(plain.pop("lostTogether", None)):
        loss: Json = {"at": lost.get("at"), "domain": None, "reason": "", "shared": True}
        plain["lost"] = _dict(plain.get("lost")) | dict.fromkeys(_names(lost.get("nodes"), assignment), loss)
    if leaving := _dict(plain.pop("drainingTogether", None)):
        reason = leaving.get("reason")
        plain["draining"] = dict.fromkeys(_names(leaving.get("nodes"), assignment), reason)
    effects: dict[str, Json] = {}
    if releases := _dict(plain.pop("releases", None)):
        nodes = unpack(releases.get("of"))
        fields: list[dict[str, Json]] = [
            {"reason": f"{node} is not used by this job any more", "node": node} for node in nodes
        ]
        effects |= _effects("Release", releases, fields)
    if acquires := _dict(plain.pop("acquires", None)):
        counts = [int(count) for count in str(acquires.get("of")).split()]
        fields = [{"reason": f"{count} nodes are missing", "count": count} for count in counts]
        effects |= _effects("Acquire", acquires, fields)
    if effects:
        pending = _dict(plain.get("pending")) | effects
        plain["pending"] = dict(sorted(pending.items(), key=lambda item: _number(item[0])))
    return plain


def _effects(kind: str, group: Mapping[str, Json], fields: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Pending effects of one kind, by id."""
    ids = [f"e-{number}" for number in _numbers(group.get("ids"))]
    return {
        effect_id: {"kind": kind, "data": {"effect_id": effect_id, **data}}
        for effect_id, data in zip(ids, fields, strict=True)
    }


def _places(nodes: Sequence[str], assignment: Sequence[str]) -> Json:
    """Nodes as ranges of places in the assignment, and those that are not in it by name."""
    place = {name: index for index, name in enumerate(assignment)}
    others = pack([name for name in nodes if name not in place])
    return {"places": _ranges(place[name] for name in nodes if name in place), "others": others}


def _names(packed_ones: Json, assignment: Sequence[str]) -> list[str]:
    found = _dict(packed_ones)
    places = _numbers(found.get("places"))
    if any(place >= len(assignment) for place in places):
        raise ValueError(f"expected places below {len(assignment)}, got {found.get('places')!r}")
    return [*(assignment[place] for place in places), *unpack(found.get("others"))]


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in order, as in "0-5,9"."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _numbers(text: Json) -> list[int]:
    bounds = [part.split("-") for part in str(text or "").split(",") if part]
    return [number for bound in bounds for number in range(int(bound[0]), int(bound[-1]) + 1)]


def _number(effect_id: str) -> int:
    digits = effect_id.removeprefix("e-")
    return int(digits) if digits.isdigit() else 0


def _without(encoded: Json, names: Iterable[str]) -> Json:
    left_out = set(names)
    return {name: value for name, value in _dict(encoded).items() if name not in left_out}


def _dict(value: Json) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {value!r}")
    return value


def _list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []
