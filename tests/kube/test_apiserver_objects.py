"""The double behaves like a real API server: objects, conflicts, apply, deletion."""

from __future__ import annotations

from pathlib import Path

from objects import config_map, fresh, pod, refusal
from rest import Rest

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


def test_create_get_update_and_a_conflict(api: Rest) -> None:
    name = fresh()
    made = api.create(CONFIGMAPS, config_map(name, a="1"))
    assert refusal(lambda: api.create(CONFIGMAPS, config_map(name))).status["reason"] == "AlreadyExists"
    changed = api.update(f"{CONFIGMAPS}/{name}", made | {"data": {"a": "2"}})
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    lost = refusal(lambda: api.update(f"{CONFIGMAPS}/{name}", made | {"data": {"a": "3"}}))
    assert (lost.code, lost.status["reason"]) == (409, "Conflict")
    assert "the object has been modified" in lost.status["message"]
    assert api.get(f"{CONFIGMAPS}/{name}")["data"] == {"a": "2"}


def test_a_write_that_changes_nothing_makes_no_new_version(api: Rest) -> None:
    name = fresh()
    made = api.create(CONFIGMAPS, config_map(name, a="1"))
    again = api.update(f"{CONFIGMAPS}/{name}", made)
    applied = api.apply(f"{CONFIGMAPS}/{name}", config_map(name, a="1"), "me")
    once_more = api.apply(f"{CONFIGMAPS}/{name}", config_map(name, a="1"), "me")
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert once_more["metadata"]["resourceVersion"] == applied["metadata"]["resourceVersion"]


def test_json_patch_with_a_test_on_the_version(api: Rest) -> None:
    name = fresh()
    made = api.create(CONFIGMAPS, config_map(name, a="1"))
    version = made["metadata"]["resourceVersion"]
    operations = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "add", "path": "/metadata/annotations", "value": {"megascale.io/x": "y"}},
        {"op": "replace", "path": "/data/a", "value": "2"},
    ]
    patched = api.json_patch(f"{CONFIGMAPS}/{name}", operations)
    assert (patched["data"], patched["metadata"]["annotations"]) == ({"a": "2"}, {"megascale.io/x": "y"})
    assert refusal(lambda: api.json_patch(f"{CONFIGMAPS}/{name}", operations)).code == 422


def test_merge_patch_with_a_stale_version_conflicts(api: Rest) -> None:
    name = fresh()
    made = api.create(CONFIGMAPS, config_map(name, a="1", b="1"))
    patched = api.merge(f"{CONFIGMAPS}/{name}", {"data": {"a": None, "c": "3"}})
    assert patched["data"] == {"b": "1", "c": "3"}
    stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"b": "9"}}
    assert refusal(lambda: api.merge(f"{CONFIGMAPS}/{name}", stale)).code == 409


def test_apply_owns_what_it_states_and_nothing_else(api: Rest) -> None:
    name = fresh()
    path = f"{CONFIGMAPS}/{name}"
    api.apply(path, config_map(name, a="1", b="1"), "one")
    api.apply(path, config_map(name, c="1"), "two")
    dropped = api.apply(path, config_map(name, a="1"), "one")
    assert dropped["data"] == {"a": "1", "c": "1"}
    clash = refusal(lambda: api.apply(path, config_map(name, a="2"), "two"))
    assert clash.status["message"] == 'Apply failed with 1 conflict: conflict with "one" using v1: .data.a'
    assert clash.status["details"]["causes"][0]["field"] == ".data.a"
    forced = api.apply(path, config_map(name, a="2"), "two", force=True)
    assert forced["data"] == {"a": "2"}
    entries = {one["manager"]: one["fieldsV1"] for one in forced["metadata"]["managedFields"]}
    assert entries == {"two": {"f:data": {"f:a": {}}}}


def test_an_update_takes_ownership_from_an_applier(api: Rest) -> None:
    name = fresh()
    path = f"{CONFIGMAPS}/{name}"
    api.apply(path, config_map(name, a="1"), "one")
    api.merge(path, {"data": {"a": "2"}}, fieldManager="person")
    clash = refusal(lambda: api.apply(path, config_map(name, a="1"), "one"))
    assert 'conflict with "person" using v1: .data.a' in clash.status["message"]


def test_keyed_lists_are_shared_and_atomic_lists_are_not(api: Rest) -> None:
    """The taints of a node are atomic: a forced apply removes those of other managers."""
    name = fresh("node")
    api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    mine = {"key": "mine", "effect": "NoSchedule"}
    config = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": [mine]}}
    assert refusal(lambda: api.apply(f"/api/v1/nodes/{name}", config, "one")).code == 409
    forced = api.apply(f"/api/v1/nodes/{name}", config, "one", force=True)
    assert forced["spec"]["taints"][0]["key"] == "mine"
    gated = pod(fresh("pod"), schedulingGates=[{"name": "hold"}])
    made = api.apply(f"{PODS}/{gated['metadata']['name']}", gated, "one")
    other = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": made["metadata"]["name"], "finalizers": ["a/b"]},
    }
    both = api.apply(f"{PODS}/{made['metadata']['name']}", other, "two")
    assert both["metadata"]["finalizers"] == ["a/b"]
    assert both["spec"]["containers"][0]["name"] == "main"
    api.apply(
        f"{PODS}/{made['metadata']['name']}", other | {"metadata": {"name": made["metadata"]["name"]}}, "two"
    )
    api.delete(f"{PODS}/{made['metadata']['name']}")
    api.delete(f"/api/v1/nodes/{name}")


def test_pods_are_nearly_immutable(api: Rest) -> None:
    made = api.create(PODS, pod(fresh("pod"), nodeSelector={"no": "where"}))
    path = f"{PODS}/{made['metadata'].pop('name')}"
    del made["metadata"]["resourceVersion"]
    container = made["spec"]["containers"][0] | {"command": ["false"]}
    refused = refusal(lambda: api.update(path, made | {"spec": made["spec"] | {"containers": [container]}}))
    assert (refused.code, refused.status["reason"]) == (422, "Invalid")
    api.delete(path)


def test_unknown_fields_are_refused_when_strict_and_dropped_otherwise(api: Rest) -> None:
    body = config_map(fresh()) | {"dta": {}}
    strict = refusal(lambda: api.create(CONFIGMAPS, body, fieldValidation="Strict"))
    assert 'strict decoding error: unknown field "dta"' in strict.status["message"]
    assert "dta" not in api.create(CONFIGMAPS, body)


def test_deletion_waits_for_finalizers_and_respects_preconditions(api: Rest) -> None:
    name = fresh()
    path = f"{CONFIGMAPS}/{name}"
    body = config_map(name)
    body["metadata"]["finalizers"] = ["megascale.io/x"]
    made = api.create(CONFIGMAPS, body)
    wrong = {"preconditions": {"uid": "another"}}
    assert refusal(lambda: api.delete(path, wrong)).code == 409
    marked = api.delete(path, {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert marked["metadata"]["deletionTimestamp"]
    late = {"metadata": {"finalizers": ["megascale.io/x", "megascale.io/y"]}}
    assert refusal(lambda: api.merge(path, late)).code == 422
    api.merge(path, {"metadata": {"finalizers": None}})
    assert refusal(lambda: api.get(path)).code == 404


def test_dependents_go_with_their_owner(api: Rest) -> None:
    owner = api.create(CONFIGMAPS, config_map(fresh("owner")))
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    body = config_map(fresh("child"))
    body["metadata"]["ownerReferences"] = [reference]
    child = api.create(CONFIGMAPS, body)
    version = child["metadata"]["resourceVersion"]
    with api.watch(
        CONFIGMAPS, resourceVersion=version, fieldSelector=f"metadata.name={child['metadata']['name']}"
    ) as events:
        api.delete(f"{CONFIGMAPS}/{owner['metadata']['name']}")
        assert next(events)["type"] == "DELETED"


def test_delete_of_a_collection_by_label(api: Rest) -> None:
    label = fresh("group")
    for name in ("a", "b", "c"):
        body = config_map(f"{label}-{name}")
        body["metadata"]["labels"] = {"group": label, "letter": name}
        api.create(CONFIGMAPS, body)
    api.delete(CONFIGMAPS, labelSelector=f"group={label},letter notin (c)")
    left = api.get(CONFIGMAPS, labelSelector=f"group={label}")["items"]
    assert [one["metadata"]["labels"]["letter"] for one in left] == ["c"]


def test_pages_are_one_snapshot(api: Rest) -> None:
    label = fresh("page")
    for n in range(5):
        body = config_map(f"{label}-{n}")
        body["metadata"]["labels"] = {"page": label}
        api.create(CONFIGMAPS, body)
    first = api.get(CONFIGMAPS, labelSelector=f"page={label}", limit=2)
    api.delete(f"{CONFIGMAPS}/{label}-4")
    seen, token = first["items"], first["metadata"]["continue"]
    while token:
        page = api.get(CONFIGMAPS, labelSelector=f"page={label}", limit=2, **{"continue": token})
        seen, token = seen + page["items"], page["metadata"].get("continue", "")
    assert [one["metadata"]["name"] for one in seen] == [f"{label}-{n}" for n in range(5)]
    assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_unsupported_requests_get_501(api: Rest) -> None:
    assert refusal(lambda: api.get("/apis/batch/v1/jobs")).code == 404
    name = fresh()
    api.create(CONFIGMAPS, config_map(name))
    foreground = {"propagationPolicy": "Foreground"}
    assert refusal(lambda: api.delete(f"{CONFIGMAPS}/{name}", foreground)).code == 501


def test_the_audit_log_has_user_and_request(api: Rest, kubeconfig: Path) -> None:
    name = fresh("audited")
    api.create(CONFIGMAPS, config_map(name))
    api.delete(f"{CONFIGMAPS}/{name}")
    lines = (kubeconfig.parent / "audit.jsonl").read_text()
    assert (
        f'"verb": "delete", "group": "", "resource": "configmaps", "namespace": "default", "name": "{name}"'
        in lines
    )
