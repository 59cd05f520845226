"""The scheduler's filters: whether a pod fits a node."""

from __future__ import annotations

from dataclasses import dataclass, field

from apiserver.controllers.quantities import number, requests
from apiserver.errors import Json
from apiserver.selectors import expressions_matcher, selector_matcher

HOSTNAME = "kubernetes.io/hostname"


def tolerates(tolerations: list[Json], taint: Json) -> bool:
    """Return whether any toleration matches a taint."""
    for one in tolerations:
        if one.get("effect") and one["effect"] != taint["effect"]:
            continue
        exists, key = one.get("operator", "Equal") == "Exists", one.get("key", "")
        if key == taint["key"] and (exists or one.get("value", "") == taint.get("value", "")):
            return True
        if not key and exists:
            return True
    return False


@dataclass
class NodeInfo:
    """A node's state in the scheduler: capacity, taints, labels and pods."""

    name: str
    node: Json = field(default_factory=dict)
    pods: dict[tuple[str, str], Json] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)

    def add(self, pod: Json) -> None:
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        if key not in self.pods:
            for name, value in requests(pod["spec"]).items():
                self.used[name] = self.used.get(name, 0.0) + value
        self.pods[key] = pod

    def remove(self, key: tuple[str, str]) -> None:
        pod = self.pods.pop(key, None)
        if pod:
            for name, value in requests(pod["spec"]).items():
                self.used[name] -= value


def refusal(pod: Json, info: NodeInfo) -> str:
    """Return why `pod` does not fit the node, worded as by the scheduler; "" if it fits."""
    spec, node = pod["spec"], info.node
    meta, labels = node["metadata"], node["metadata"].get("labels", {})
    tolerations = spec.get("tolerations", [])
    unschedulable = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if node["spec"].get("unschedulable") and not tolerates(tolerations, unschedulable):
        return "node(s) were unschedulable"
    for taint in node["spec"].get("taints", ()):
        if taint["effect"] in {"NoSchedule", "NoExecute"} and not tolerates(tolerations, taint):
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    if not _selected(spec, labels, meta["name"]):
        return "node(s) didn't match Pod's node affinity/selector"
    allocatable = node.get("status", {}).get("allocatable", {})
    for name, value in requests(spec).items():
        if (
            info.used.get(name, 0.0) + value
            > number(allocatable.get(name, "110" if name == "pods" else "0")) + 1e-9
        ):
            return "Too many pods" if name == "pods" else f"Insufficient {name}"
    return _anti_affinity(pod, info)


def _selected(spec: Json, labels: dict[str, str], name: str) -> bool:
    if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
        return False
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(term, labels, name) for term in required["nodeSelectorTerms"])


def _term_matches(term: Json, labels: dict[str, str], name: str) -> bool:
    expressions, fields = term.get("matchExpressions", []), term.get("matchFields", [])
    if not expressions and not fields:
        return False
    if expressions and not expressions_matcher(expressions)(labels):
        return False
    return not fields or expressions_matcher(fields)({"metadata.name": name})


def _terms(pod: Json) -> list[Json]:
    affinity = pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", ())
    return [term for term in terms if term["topologyKey"] == HOSTNAME]


def _anti_affinity(pod: Json, info: NodeInfo) -> str:
    own = _terms(pod)
    for other in info.pods.values():
        for term in own:
            if _hits(term, pod, other):
                return "node(s) didn't match pod anti-affinity rules"
        for term in _terms(other):
            if _hits(term, other, pod):
                return "node(s) didn't satisfy existing pods anti-affinity rules"
    return ""


def _hits(term: Json, owner: Json, other: Json) -> bool:
    namespaces = term.get("namespaces") or [owner["metadata"]["namespace"]]
    if other["metadata"]["namespace"] not in namespaces and "namespaceSelector" not in term:
        return False
    return "labelSelector" in term and selector_matcher(term["labelSelector"])(
        other["metadata"].get("labels", {})
    )
