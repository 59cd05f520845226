"""Subresources of pods and ServiceAccounts that are actions: binding, eviction, token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apiserver import errors, pods
from apiserver.authn import Tokens
from apiserver.errors import Json
from apiserver.managed import now_text
from apiserver.selectors import selector_matcher
from apiserver.store import Store
from apiserver.target import Options, Target
from apiserver.typed import copy
from apiserver.writes import Writer

_SHORTEST_TOKEN_S = 600
_PDBS = "poddisruptionbudgets.policy"


class Actions:
    """Executes the actions on the store."""

    def __init__(self, store: Store, writer: Writer, tokens: Tokens) -> None:
        self._store = store
        self._writer = writer
        self._tokens = tokens

    def bind(self, target: Target, body: Json) -> Json:
        pod = self._pod(target)
        node = body.get("target", {}).get("name", "")
        if not node:
            raise errors.bad_request("target.name is required")
        self._store.put("pods", pods.bind(pod, node, now_text()))
        return success()

    def evict(self, target: Target, body: Json, options: Options) -> Json:
        """Evict a pod. Raises: 429 if a PodDisruptionBudget does not allow it now."""
        pod = self._pod(target)
        wanted = body.get("deleteOptions") or {}
        if not pods.is_over(pod) and pod["spec"].get("nodeName"):
            self._check_budgets(pod)
            marked: Json = copy(pod)
            why = "Eviction API: evicting"
            pods.set_condition(marked, "DisruptionTarget", "True", "EvictionByEvictionAPI", why, now_text())
            self._store.put("pods", marked)
        self._writer.delete(target, wanted, options)
        return success()

    def _check_budgets(self, pod: Json) -> None:
        meta = pod["metadata"]
        for budget in self._store.all(_PDBS, meta["namespace"]):
            matches = selector_matcher(budget.obj["spec"].get("selector", {}))
            if not matches(meta.get("labels", {})):
                continue
            siblings = [one.obj for one in self._store.all("pods", meta["namespace"])]
            siblings = [one for one in siblings if matches(one["metadata"].get("labels", {}))]
            if allowed_disruptions(budget.obj["spec"], siblings) <= 0:
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                name = budget.obj["metadata"]["name"]
                cause = {
                    "reason": "DisruptionBudget",
                    "message": f"The disruption budget {name} does not allow it",
                }
                raise errors.ApiError(429, "TooManyRequests", message, {"causes": [cause]}, retry_after_s=1)

    def token(self, target: Target, body: Json) -> Json:
        """Return a TokenRequest with its token."""
        account = self._store.get("serviceaccounts", target.namespace, target.name)
        if account is None:
            raise target.not_found()
        spec = body.get("spec") or {}
        life_s = int(spec.get("expirationSeconds") or 3600)
        if life_s < _SHORTEST_TOKEN_S:
            cause = errors.Cause(
                "spec.expirationSeconds",
                f"Invalid value: {life_s}: may not specify a duration less than 10 minutes",
            )
            raise errors.invalid("TokenRequest", "authentication.k8s.io", target.name, [cause])
        bound = self._bound(target, spec.get("boundObjectRef"))
        token = self._tokens.issue(target.namespace, account.obj, spec.get("audiences") or [], life_s, bound)
        expires = (datetime.now(UTC) + timedelta(seconds=life_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
        meta = {"name": target.name, "namespace": target.namespace}
        status = {"token": token, "expirationTimestamp": expires}
        return answer | {"metadata": meta, "spec": spec | {"expirationSeconds": life_s}, "status": status}

    def _bound(self, target: Target, ref: Json | None) -> Json | None:
        if not ref:
            return None
        if ref.get("kind") != "Pod":
            raise errors.not_implemented(f"tokens bound to a {ref.get('kind')}")
        pod = self._store.get("pods", target.namespace, ref["name"])
        if pod is None or ref.get("uid") not in {None, "", pod.obj["metadata"]["uid"]}:
            raise errors.not_found("pods", "", ref["name"])
        claims: Json = {"pod": {"name": ref["name"], "uid": pod.obj["metadata"]["uid"]}}
        node = pod.obj["spec"].get("nodeName")
        found = self._store.get("nodes", "", node) if node else None
        return claims | ({"node": {"name": node, "uid": found.obj["metadata"]["uid"]}} if found else {})

    def _pod(self, target: Target) -> Json:
        found = self._store.get("pods", target.namespace, target.name)
        if found is None:
            raise target.not_found()
        return found.obj


def allowed_disruptions(spec: Json, siblings: list[Json]) -> int:
    """Return how many of a budget's pods may be evicted now."""
    healthy = sum(is_ready(one) and not one["metadata"].get("deletionTimestamp") for one in siblings)
    minimum = spec.get("minAvailable")
    if minimum is None:
        limit = spec.get("maxUnavailable", 1)
        return _scaled(limit, len(siblings)) - (len(siblings) - healthy)
    return healthy - _scaled(minimum, len(siblings))


def _scaled(value: int | str, total: int) -> int:
    return -(-total * int(value.rstrip("%")) // 100) if isinstance(value, str) else value


def is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def success() -> Json:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
