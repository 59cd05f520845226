"""Server-side apply and the bookkeeping of metadata.managedFields.

The rules are those of sigs.k8s.io/structured-merge-diff: an apply owns exactly the fields it contains, takes
over those of other managers only by force, and removes fields it contained before that no other manager owns.
"""

from __future__ import annotations

from typing import Any

from apiserver.errors import ApiError, Json
from apiserver.fieldsets import Flat, Path, flatten, item_element, shown
from apiserver.managed import Managed, Manager, Owned
from apiserver.typed import ANY, Node, copy

_ABSENT: Any = object()


def track_update(before: Managed, old_flat: Flat, new: Json, node: Node, manager: Manager) -> None:
    """Record that the writer of a create or update (not apply) owns the fields it changed."""
    owned = dict(before.owned)
    new_flat = flatten(new, node)
    changed = {path for path, value in new_flat.items() if old_flat.get(path, _ABSENT) != value}
    removed = old_flat.keys() - new_flat.keys()
    if changed or removed:
        mine = owned.pop(manager, frozenset()) - removed | changed
        owned = {key: paths - removed - changed for key, paths in owned.items()} | {manager: mine}
    before.write(new, owned)


def apply(
    live: Json, live_flat: Flat, before: Managed, config: Json, node: Node, manager: Manager, *, force: bool
) -> Json:
    """Return the object after `manager` applied `config` to `live`.

    Raises: 409 with every field another manager owns with another value, unless `force`.
    """
    owned = dict(before.owned)
    stated = frozenset(flatten(config, node))
    last = owned.get(manager, frozenset())
    merged: Json = merge(live, config, node)
    merged["metadata"] = dict(merged["metadata"])
    owned[manager] = stated
    dropped = last - frozenset().union(*owned.values()) if last else frozenset()
    if dropped:
        prefixes = {path[:n] for paths in owned.values() for path in paths for n in range(1, len(path) + 1)}
        merged = _without(merged, node, (), frozenset(dropped), prefixes, _parents(dropped))
    new_flat = flatten(merged, node)
    changed = {path for path, value in new_flat.items() if live_flat.get(path, _ABSENT) != value}
    _take_over(owned, manager, changed, force=force)
    gone = live_flat.keys() - new_flat.keys()
    if gone:
        owned = {key: paths - gone for key, paths in owned.items()}
    before.write(merged, owned)
    return merged


def _take_over(owned: Owned, manager: Manager, changed: set[Path], *, force: bool) -> None:
    contested = [
        (key, path) for key, paths in owned.items() if key != manager for path in sorted(paths & changed)
    ]
    if contested and not force:
        raise _conflict(contested)
    for key, _ in contested:
        owned[key] = owned[key] - changed


def _conflict(contested: list[tuple[Manager, Path]]) -> ApiError:
    lines, causes = [], []
    for key, path in contested:
        who = f'"{key.name}"' + (f' with subresource "{key.subresource}"' if key.subresource else "")
        who += f" using {key.api_version}"
        lines.append(f"conflict with {who}: {shown(path)}")
        causes.append(
            {"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": shown(path)}
        )
    count = f"{len(lines)} conflict" + ("s" if len(lines) > 1 else "")
    return ApiError(409, "Conflict", f"Apply failed with {count}: " + "\n".join(lines), {"causes": causes})


def merge(live: Any, config: Any, node: Node) -> Any:
    """Merge `config` into `live`: maps by key, keyed lists by item; everything else is replaced."""
    if isinstance(config, dict) and isinstance(live, dict) and not node.atomic:
        merged = dict(live)
        for name, value in config.items():
            merged[name] = merge(live[name], value, node.child(name)) if name in live else copy(value)
        return merged
    if (
        isinstance(config, list)
        and isinstance(live, list)
        and node.form == "list"
        and node.list_type != "atomic"
    ):
        return _merge_list(live, config, node)
    return copy(config)


def _merge_list(live: list[Any], config: list[Any], node: Node) -> list[Any]:
    items = node.items or ANY
    merged = {item_element(item, node): item for item in live}
    for item in config:
        element = item_element(item, node)
        merged[element] = merge(merged[element], item, items) if element in merged else copy(item)
    return list(merged.values())


def _parents(paths: frozenset[Path]) -> set[Path]:
    return {path[:n] for path in paths for n in range(len(path))}


def _without(
    value: Any, node: Node, path: Path, dropped: frozenset[Path], owned: set[Path], on_the_way: set[Path]
) -> Any:
    """Return `value` without the dropped leaves, and without unowned containers that became empty."""
    if isinstance(value, dict):
        pairs = [(name, ("f:" + name), inner, node.child(name)) for name, inner in value.items()]
    else:
        items = node.items or ANY
        pairs = [(n, item_element(inner, node), inner, items) for n, inner in enumerate(value)]
    kept = []
    for name, element, inner, child in pairs:
        where = (*path, element)
        if where in dropped and where not in owned:
            continue
        if where in on_the_way and isinstance(inner, dict | list):
            rest = _without(inner, child, where, dropped, owned, on_the_way)
            if not rest and where not in owned:
                continue
            kept.append((name, rest))
        else:
            kept.append((name, inner))
    return dict(kept) if isinstance(value, dict) else [inner for _, inner in kept]
