"""Strategic merge patch for built-in kinds, driven by their patch strategies and merge keys."""

from __future__ import annotations

from typing import Any

from apiserver.errors import Json, bad_request
from apiserver.typed import ANY, Node, copy

_SET_ORDER = "$setElementOrder/"
_DELETE_FROM = "$deleteFromPrimitiveList/"
_RETAIN = "$retainKeys"
_DIRECTIVE = "$patch"


def strategic_merge(target: Any, patch: Any, node: Node) -> Any:
    """Apply `patch` to `target`, both JSON objects of the type `node`; return the result."""
    if not isinstance(patch, dict):
        return copy(patch)
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {name: copy(value) for name, value in patch.items() if name != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in {None, "merge"}:
        raise bad_request(f"unrecognized strategic merge directive: {directive!r}")
    merged: Json = dict(target) if isinstance(target, dict) else {}
    if _RETAIN in patch:
        merged = {name: value for name, value in merged.items() if name in patch[_RETAIN]}
    for name, value in patch.items():
        if not name.startswith("$"):
            _merge_field(merged, name, value, node.child(name))
    _delete_primitives(merged, patch)
    _order(merged, patch, node)
    return merged


def _merge_field(merged: Json, name: str, value: Any, node: Node) -> None:
    if value is None:
        merged.pop(name, None)
    elif isinstance(value, list) and "merge" in node.strategies:
        merged[name] = _merge_list(merged.get(name) or [], value, node)
    elif isinstance(value, dict) and not node.atomic:
        merged[name] = strategic_merge(merged.get(name), value, node)
    else:
        merged[name] = copy(value)


def _merge_list(live: list[Any], patch: list[Any], node: Node) -> list[Any]:
    if not node.merge_key:
        return live + [one for one in patch if one not in live]
    if any(isinstance(one, dict) and one.get(_DIRECTIVE) == "replace" for one in patch):
        return [copy(one) for one in patch if one.get(_DIRECTIVE) != "replace"]
    items, key = node.items or ANY, node.merge_key
    merged = list(live)
    for one in patch:
        if key not in one:
            raise bad_request(f"map: {one} does not contain declared merge key: {key}")
        at = next((n for n, old in enumerate(merged) if old.get(key) == one[key]), None)
        if one.get(_DIRECTIVE) == "delete":
            merged = [old for old in merged if old.get(key) != one[key]]
        elif at is None:
            merged.append(strategic_merge({}, one, items))
        else:
            merged[at] = strategic_merge(merged[at], one, items)
    return merged


def _delete_primitives(merged: Json, patch: Json) -> None:
    for name, values in patch.items():
        if name.startswith(_DELETE_FROM):
            field = name.removeprefix(_DELETE_FROM)
            merged[field] = [one for one in merged.get(field, ()) if one not in values]


def _order(merged: Json, patch: Json, node: Node) -> None:
    for name, order in patch.items():
        field = name.removeprefix(_SET_ORDER)
        if not name.startswith(_SET_ORDER) or not isinstance(merged.get(field), list):
            continue
        key = node.child(field).merge_key
        wanted = [one[key] if isinstance(one, dict) else one for one in order]
        rank = {value: n for n, value in enumerate(wanted)}
        merged[field].sort(key=lambda one: rank.get(one[key] if isinstance(one, dict) else one, len(rank)))
