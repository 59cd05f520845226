"""Defaults, admission and immutable fields of pods."""

from __future__ import annotations

from typing import Any

from apiserver.errors import ApiError, Cause, Json, forbidden
from apiserver.store import Store
from apiserver.typed import copy

_TOKEN_LIFE_S = 3607
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_DEFAULT_TOLERATION_S = 300


def default_pod(pod: Json, suffix: str, store: Store) -> None:
    """Set the fields that the API server defaults and its admission plug-ins add. Raises: 403."""
    spec = pod["spec"]
    for name, value in _POD_DEFAULTS.items():
        spec.setdefault(name, copy(value))
    _service_account(pod, suffix, store)
    _priority(pod, store)
    _tolerations(spec)
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        _default_container(container)
    for volume in spec.get("volumes", ()):
        _default_volume(volume)
    pod["status"] = {"phase": "Pending", "qosClass": quality(spec)}


_POD_DEFAULTS: Json = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
}


def _default_container(container: Json) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("resources", {})
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    container.setdefault("imagePullPolicy", "IfNotPresent" if tag not in {"", "latest"} else "Always")
    limits, requests = container["resources"].get("limits", {}), container["resources"].get("requests", {})
    if limits:
        container["resources"]["requests"] = limits | requests
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for variable in container.get("env", ()):
        if "fieldRef" in variable.get("valueFrom", {}):
            variable["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe in container:
            container[probe] = _PROBE_DEFAULTS | container[probe]


_PROBE_DEFAULTS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def _default_volume(volume: Json) -> None:
    for kind in ("configMap", "secret", "downwardAPI", "projected"):
        if kind in volume:
            volume[kind].setdefault("defaultMode", 0o644)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    items = list(volume.get("downwardAPI", {}).get("items", ()))
    for source in volume.get("projected", {}).get("sources", ()):
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
        items += source.get("downwardAPI", {}).get("items", ())
    for item in items:
        if "fieldRef" in item:
            item["fieldRef"].setdefault("apiVersion", "v1")
    if volume.keys() == {"name"}:
        volume["emptyDir"] = {}


def _service_account(pod: Json, suffix: str, store: Store) -> None:
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    name = spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", name)
    account = store.get("serviceaccounts", namespace, name)
    if account is None:
        why = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
        raise forbidden("pods", "", pod["metadata"]["name"], why)
    wanted = spec.get("automountServiceAccountToken", account.obj.get("automountServiceAccountToken", True))
    if not wanted:
        return
    volume = f"kube-api-access-{suffix}"
    lacking = [
        container
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        if all(mount["mountPath"] != _TOKEN_PATH for mount in container.get("volumeMounts", ()))
    ]
    for container in lacking:
        mount = {"name": volume, "readOnly": True, "mountPath": _TOKEN_PATH}
        container.setdefault("volumeMounts", []).append(mount)
    if lacking:
        spec.setdefault("volumes", []).append({"name": volume, "projected": _api_access()})


def _api_access() -> Json:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    ca = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    token = {"expirationSeconds": _TOKEN_LIFE_S, "path": "token"}
    sources = [{"serviceAccountToken": token}, {"configMap": ca}, {"downwardAPI": {"items": [namespace]}}]
    return {"defaultMode": 0o644, "sources": sources}


def _priority(pod: Json, store: Store) -> None:
    spec = pod["spec"]
    name = spec.get("priorityClassName")
    if not name:
        spec.setdefault("priority", 0)
        return
    found = store.get("priorityclasses.scheduling.k8s.io", "", name)
    if found is None:
        raise forbidden("pods", "", pod["metadata"]["name"], f"no PriorityClass with name {name} was found")
    spec["priority"] = found.obj["value"]
    if "preemptionPolicy" in found.obj:
        spec["preemptionPolicy"] = found.obj["preemptionPolicy"]


def _tolerations(spec: Json) -> None:
    given = spec.get("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(
            one.get("key", key) == key and one.get("effect", "NoExecute") == "NoExecute" for one in given
        ):
            added = {"key": key, "operator": "Exists", "effect": "NoExecute"}
            spec["tolerations"] = [
                *spec.get("tolerations", []),
                added | {"tolerationSeconds": _DEFAULT_TOLERATION_S},
            ]


def quality(spec: Json) -> str:
    """Return the quality of service class."""
    resources = [container.get("resources", {}) for container in spec["containers"]]
    if not any(one.get("requests") or one.get("limits") for one in resources):
        return "BestEffort"
    wanted = {"cpu", "memory"}
    full = all(wanted <= one.get("limits", {}).keys() for one in resources)
    same = all(one.get("limits") == one.get("requests", one.get("limits")) for one in resources)
    return "Guaranteed" if full and same else "Burstable"


_MAY_CHANGE = ("activeDeadlineSeconds", "terminationGracePeriodSeconds")


def check_pod_update(old: Json, new: Json) -> list[Cause]:
    """Return the invalid changes of an update of a pod's spec; nearly all fields are immutable."""
    before, after = _comparable(old["spec"]), _comparable(new["spec"])
    if old["spec"].get("schedulingGates"):
        for spec in (before, after):
            spec.pop("nodeSelector", None)
            spec.pop("affinity", None)
    causes = []
    if before != after:
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        message = (
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions "
            f"to existing tolerations),`spec.terminationGracePeriodSeconds`; changed: {', '.join(changed)}"
        )
        causes.append(Cause("spec", message, "FieldValueForbidden"))
    if any(one not in new["spec"].get("tolerations", ()) for one in old["spec"].get("tolerations", ())):
        message = "Forbidden: existing toleration can not be modified except its tolerationSeconds"
        causes.append(Cause("spec.tolerations", message, "FieldValueForbidden"))
    gates = {one["name"] for one in old["spec"].get("schedulingGates", ())}
    if {one["name"] for one in new["spec"].get("schedulingGates", ())} - gates:
        message = "Forbidden: only deletion is allowed, but found new scheduling gates"
        causes.append(Cause("spec.schedulingGates", message, "FieldValueForbidden"))
    return causes


def _comparable(spec: Json) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in spec.items()
        if name not in {*_MAY_CHANGE, "tolerations", "schedulingGates"}
    }
    for name in ("containers", "initContainers"):
        if name in kept:
            kept[name] = [{key: value for key, value in one.items() if key != "image"} for one in kept[name]]
    return kept


def is_over(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def set_condition(pod: Json, kind: str, status: str, reason: str, message: str, time: str) -> None:
    """Set a condition in place; lastTransitionTime changes only with the status."""
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    old = next((one for one in conditions if one["type"] == kind), None)
    since = old["lastTransitionTime"] if old and old["status"] == status else time
    new = {"type": kind, "status": status, "lastTransitionTime": since}
    new |= ({"reason": reason} if reason else {}) | ({"message": message} if message else {})
    pod["status"]["conditions"] = [one for one in conditions if one is not old] + [new]


def bind(pod: Json, node: str, time: str) -> Json:
    """Return a copy of `pod` bound to `node`. Raises: 409 if it is already bound."""
    if pod["spec"].get("nodeName"):
        name = pod["metadata"]["name"]
        why = (
            f'Operation cannot be fulfilled on pods/binding "{name}": pod {name} is already assigned to node'
        )
        raise ApiError(409, "Conflict", f'{why} "{pod["spec"]["nodeName"]}"')
    bound: Json = copy(pod)
    bound["spec"]["nodeName"] = node
    set_condition(bound, "PodScheduled", "True", "", "", time)
    return bound
