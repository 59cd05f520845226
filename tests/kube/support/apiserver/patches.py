"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386)."""

from __future__ import annotations

from typing import Any

from apiserver.errors import ApiError, Json, bad_request
from apiserver.typed import copy


def json_merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386): null removes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = json_merge(merged.get(name), value)
    return merged


def json_patch(target: Json, operations: Any) -> Json:
    """Apply a JSON patch (RFC 6902). Raises: 422 for a failed test or path, 400 for a malformed patch."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    root: Any = copy(target)
    for operation in operations:
        root = _perform(root, operation)
    if not isinstance(root, dict):
        raise bad_request("a JSON patch must leave an object")
    return root


def _perform(root: Any, operation: Json) -> Any:
    kind, path = operation.get("op"), _pointer(operation.get("path", ""))
    if kind == "test":
        if _get(root, path) != operation.get("value"):
            raise _failed(f"testing value {operation.get('path')} failed")
        return root
    if kind == "remove":
        return _remove(root, path)
    if kind in {"add", "replace"}:
        return _put(root, path, copy(operation.get("value")), replace=kind == "replace")
    if kind in {"move", "copy"}:
        source = _pointer(operation.get("from", ""))
        value = copy(_get(root, source))
        return _put(_remove(root, source) if kind == "move" else root, path, value, replace=False)
    raise bad_request(f"unexpected kind of JSON patch operation: {kind!r}")


def _failed(why: str) -> ApiError:
    message = f"the server rejected our request due to an error in our request: {why}"
    return ApiError(422, "Invalid", message)


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise bad_request(f"a JSON pointer starts with /: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _step(at: Any, key: str) -> Any:
    try:
        return at[int(key)] if isinstance(at, list) else at[key]
    except (KeyError, IndexError, ValueError, TypeError):
        raise _failed(f"path does not exist at {key!r}") from None


def _get(root: Any, path: list[str]) -> Any:
    at = root
    for key in path:
        at = _step(at, key)
    return at


def _put(root: Any, path: list[str], value: Any, *, replace: bool) -> Any:
    if not path:
        return value
    parent, last = _get(root, path[:-1]), path[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else _index(last, len(parent) + (0 if replace else 1))
        parent[index : index + (1 if replace else 0)] = [value]
    elif isinstance(parent, dict):
        if replace and last not in parent:
            raise _failed(f"replace of a missing key {last!r}")
        parent[last] = value
    else:
        raise _failed(f"no container at {'/'.join(path[:-1])!r}")
    return root


def _index(text: str, bound: int) -> int:
    if not text.isdigit() or int(text) >= bound:
        raise _failed(f"index {text!r} is out of bounds")
    return int(text)


def _remove(root: Any, path: list[str]) -> Any:
    _get(root, path)
    parent, last = _get(root, path[:-1]), path[-1]
    if isinstance(parent, list):
        del parent[int(last)]
    else:
        del parent[last]
    return root
