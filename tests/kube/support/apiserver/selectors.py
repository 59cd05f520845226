"""Label and field selectors, from query strings and from LabelSelector objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from apiserver.errors import Json, bad_request

Labels = dict[str, str]
Matcher = Callable[[Labels], bool]
_SET = re.compile(r"^\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)\s*$")
_SPLIT = re.compile(r",(?![^(]*\))")


def _requirement(key: str, operator: str, values: list[str]) -> Matcher:
    wanted = frozenset(values)
    tests: dict[str, Matcher] = {
        "In": lambda labels: labels.get(key) in wanted,
        "NotIn": lambda labels: labels.get(key) not in wanted,
        "Exists": lambda labels: key in labels,
        "DoesNotExist": lambda labels: key not in labels,
        "Gt": lambda labels: labels.get(key, "").isdigit() and int(labels[key]) > int(values[0]),
        "Lt": lambda labels: labels.get(key, "").isdigit() and int(labels[key]) < int(values[0]),
    }
    return tests[operator]


def _all(tests: list[Matcher]) -> Matcher | None:
    if not tests:
        return None
    return tests[0] if len(tests) == 1 else lambda labels: all(test(labels) for test in tests)


def _part(text: str) -> Matcher:
    if found := _SET.match(text):
        values = [one.strip() for one in found[3].split(",")]
        return _requirement(found[1], "In" if found[2] == "in" else "NotIn", values)
    if found := _EQUAL.match(text):
        return _requirement(found[1], "NotIn" if found[2] == "!=" else "In", [found[3]])
    bare = text.strip()
    if not bare or " " in bare.lstrip("!"):
        raise bad_request(f"unable to parse requirement: {text!r}")
    return _requirement(bare.lstrip("!"), "DoesNotExist" if bare.startswith("!") else "Exists", [])


def label_matcher(query: str) -> Matcher | None:
    """Return the matcher of a `labelSelector` parameter; None selects everything."""
    return _all([_part(part) for part in _SPLIT.split(query)]) if query else None


def selector_matcher(selector: Json) -> Matcher:
    """Return the matcher of a LabelSelector object; an empty one selects everything."""
    tests = [_requirement(key, "In", [value]) for key, value in selector.get("matchLabels", {}).items()]
    tests += [
        _requirement(one["key"], one["operator"], one.get("values", []))
        for one in selector.get("matchExpressions", ())
    ]
    return _all(tests) or (lambda _: True)


def expressions_matcher(expressions: list[Json]) -> Matcher:
    """Return the matcher of a node selector term's matchExpressions."""
    return selector_matcher({"matchExpressions": expressions})


_ANY_KIND = frozenset(("metadata.name", "metadata.namespace"))
_FIELDS = {
    "pods": frozenset(
        ("spec.nodeName", "status.phase", "spec.restartPolicy", "spec.schedulerName",
         "spec.serviceAccountName", "status.podIP", "status.nominatedNodeName")
    ),
    "nodes": frozenset(("spec.unschedulable",)),
    "events": frozenset(
        ("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
         "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
         "regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid",
         "reason", "source", "type", "reportingComponent")
    ),
    "namespaces": frozenset(("status.phase",)),
    "secrets": frozenset(("type",)),
}  # fmt: skip


class FieldSelector:
    """The matcher of a `fieldSelector` parameter. Raises: 400 for a field the kind does not support."""

    def __init__(self, query: str, plural: str) -> None:
        self.terms: list[tuple[list[str], bool, str]] = []
        self.name = ""
        for part in filter(None, query.split(",")):
            found = _EQUAL.match(part)
            if not found:
                raise bad_request(f"invalid selector: {query!r}; can't understand {part!r}")
            if found[1] not in _ANY_KIND | _FIELDS.get(plural, frozenset()):
                raise bad_request(f'field label not supported: "{found[1]}"')
            path = found[1].replace("regarding.", "involvedObject.").split(".")
            self.terms.append((path, found[2] != "!=", found[3]))
            if found[1] == "metadata.name" and found[2] != "!=":
                self.name = found[3]

    def __call__(self, obj: Json) -> bool:
        return all((_text(obj, path) == value) is equal for path, equal, value in self.terms)


def _text(obj: Any, path: list[str]) -> str:
    at = obj
    for key in path:
        at = at.get(key) if isinstance(at, dict) else None
    if at is None or at is False:
        return "false" if path[-1] == "unschedulable" else ""
    return "true" if at is True else str(at)
