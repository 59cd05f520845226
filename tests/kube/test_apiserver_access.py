"""RBAC in the double: per verb, name and subresource, and no granting of permissions one does not hold."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import urllib3
from objects import config_map, fresh, pod, refusal
from rest import Cluster, Refused, Rest

Json = dict[str, Any]
NAMESPACE = "/api/v1/namespaces/default"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def rule(resources: str, verbs: str, *names: str, group: str = "") -> Json:
    found = {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()}
    return found | ({"resourceNames": list(names)} if names else {})


def account(api: Rest, *rules: Json, cluster: tuple[Json, ...] = ()) -> Rest:
    """Return a client of a fresh ServiceAccount with these permissions."""
    name = fresh("who")
    api.create(f"{NAMESPACE}/serviceaccounts", {"metadata": {"name": name}})
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    api.create(f"{RBAC}/namespaces/default/roles", {"metadata": {"name": name}, "rules": list(rules)})
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    binding = {"metadata": {"name": name}, "subjects": [subject], "roleRef": ref}
    api.create(f"{RBAC}/namespaces/default/rolebindings", binding)
    if cluster:
        api.create(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": list(cluster)})
        binding = {
            "metadata": {"name": name},
            "subjects": [subject],
            "roleRef": ref | {"kind": "ClusterRole"},
        }
        api.create(f"{RBAC}/clusterrolebindings", binding)
    answer = api.create(f"{NAMESPACE}/serviceaccounts/{name}/token", {"spec": {}})
    return Rest(Cluster(api.cluster.url, api.cluster.ca_pem, answer["status"]["token"]))


def test_only_what_a_role_allows(api: Rest) -> None:
    one, other = fresh(), fresh()
    for name in (one, other):
        api.create(f"{NAMESPACE}/configmaps", config_map(name))
    driver = account(api, rule("configmaps", "get watch update", one), rule("pods/status", "patch"))
    made = driver.get(f"{NAMESPACE}/configmaps/{one}")
    driver.update(f"{NAMESPACE}/configmaps/{one}", made | {"data": {"a": "1"}})
    for path in (f"configmaps/{other}", "configmaps", "secrets/x"):
        assert refusal(lambda path=path: driver.get(f"{NAMESPACE}/{path}")).code == 403
    message = refusal(lambda: driver.delete(f"{NAMESPACE}/configmaps/{one}")).status["message"]
    user = api_user(driver)
    assert message == (
        f'configmaps "{one}" is forbidden: User "{user}" cannot delete resource "configmaps" '
        'in API group "" in the namespace "default"'
    )
    name = api.create(f"{NAMESPACE}/pods", pod(fresh("pod"), nodeSelector={"no": "where"}))["metadata"][
        "name"
    ]
    assert driver.merge(f"{NAMESPACE}/pods/{name}/status", {"status": {"phase": "Running"}})
    assert refusal(lambda: driver.merge(f"{NAMESPACE}/pods/{name}", {"metadata": {"labels": {}}})).code == 403


def api_user(client: Rest) -> str:
    review = client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    return str(review["status"]["userInfo"]["username"])


def test_a_watch_of_one_name_needs_the_right_to_that_name(api: Rest) -> None:
    name = fresh()
    api.create(f"{NAMESPACE}/configmaps", config_map(name))
    client = account(api, rule("configmaps", "watch", name))
    with client.watch(f"{NAMESPACE}/configmaps", fieldSelector=f"metadata.name={name}") as events:
        assert next(events)["object"]["metadata"]["name"] == name
    with pytest.raises(Refused, match="403"), client.watch(f"{NAMESPACE}/configmaps"):
        pass


def test_nobody_grants_what_they_do_not_hold(api: Rest) -> None:
    roles = rule("roles", "create", group="rbac.authorization.k8s.io")
    bindings = rule("rolebindings", "create", group="rbac.authorization.k8s.io")
    operator = account(api, cluster=(roles, bindings, rule("configmaps", "get update")))
    path = f"{RBAC}/namespaces/default/roles"
    name = fresh("role")
    held = {"metadata": {"name": name}, "rules": [rule("configmaps", "get", "some-name")]}
    operator.create(path, held)
    more = {"metadata": {"name": fresh("role")}, "rules": [rule("configmaps", "delete")]}
    refused = refusal(lambda: operator.create(path, more))
    assert (refused.code, "attempting to grant RBAC permissions not currently held" in str(refused)) == (
        403,
        True,
    )
    binding = {"metadata": {"name": name}, "subjects": [], "roleRef": _ref("Role", name)}
    operator.create(f"{RBAC}/namespaces/default/rolebindings", binding)
    admin = {
        "metadata": {"name": fresh("b")},
        "subjects": [],
        "roleRef": _ref("ClusterRole", "cluster-admin"),
    }
    assert refusal(lambda: operator.create(f"{RBAC}/namespaces/default/rolebindings", admin)).code == 403


def _ref(kind: str, name: str) -> Json:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}


def test_self_subject_access_review_agrees_with_what_happens(api: Rest) -> None:
    client = account(api, rule("pods", "list"))
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answers = []
    for verb in ("list", "delete"):
        asked = {"verb": verb, "resource": "pods", "namespace": "default"}
        answers.append(client.create(reviews, {"spec": {"resourceAttributes": asked}})["status"]["allowed"])
    assert answers == [True, False]
    assert client.get(f"{NAMESPACE}/pods")["kind"] == "PodList"


def test_without_a_token_only_health_is_served(api: Rest) -> None:
    nobody = Rest(Cluster(api.cluster.url, api.cluster.ca_pem))
    assert nobody.get("/livez") == {"text": "ok"}
    assert refusal(lambda: nobody.get("/api/v1/nodes")).code == 401
    assert refusal(lambda: nobody.get("/openid/v1/jwks")).code == 401


def test_workloads_may_read_the_keys_that_sign_their_tokens(api: Rest) -> None:
    client = account(api)
    keys = client.get("/openid/v1/jwks")["keys"]
    assert [one["alg"] for one in keys] == ["RS256"]
    assert client.get("/.well-known/openid-configuration")["jwks_uri"].endswith("/openid/v1/jwks")


def test_keys_of_tokens_are_served_as_nothing_but_a_key_set(api: Rest) -> None:
    headers = {"Authorization": f"Bearer {api.cluster.token}", "Accept": "application/json"}
    context = ssl.create_default_context(cadata=api.cluster.ca_pem)
    with urllib3.PoolManager(ssl_context=context) as pool:
        answer = pool.request("GET", f"{api.cluster.url}/openid/v1/jwks", headers=headers)
    assert answer.status == 406


def test_a_missing_role_cannot_be_bound(api: Rest) -> None:
    client = account(api, rule("rolebindings", "create", group="rbac.authorization.k8s.io"))
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": fresh("none")}
    binding = {"metadata": {"name": fresh("who")}, "roleRef": ref}
    assert refusal(lambda: client.create(f"{RBAC}/namespaces/default/rolebindings", binding)).code == 404
