"""Quarantine decisions: modes, breaker, releases by persons, and release of only what the operator set."""

from __future__ import annotations

import json
from typing import Any

import pytest
from apiserver.patches import json_patch
from hypothesis import given
from hypothesis import strategies as st
from kube_world import node_object
from megascale_operator.kube.resources import Obj
from megascale_operator.quarantine import patches
from megascale_operator.quarantine.breaker import Limits, breaker_open_reason
from megascale_operator.quarantine.decide import Decision, JobRequest, decide, detect_manual_release
from megascale_operator.quarantine.patches import quarantine_class
from megascale_operator.reconcile import names
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.records import node_record

NOW = 1_800_000_000.0
OTHER = {"key": "maintenance", "effect": "NoExecute"}


def request(mode: str = "Enforce", incident: str = "i-3") -> JobRequest:
    return JobRequest("team/q", "n1", incident, "XID 79 on GPU 3", mode, "hardware")


def decided(
    obj: Obj, mode: str = "Enforce", ceiling: str = "Enforce", breaker: str = "", now: float = NOW
) -> Decision:
    return decide(node_record(obj), request(mode), ceiling, breaker, now)


def patched(obj: Obj, operations: Any) -> Obj:
    return json_patch(obj, operations)


def quarantined(obj: Obj, mode: str = "Enforce", now: float = NOW) -> Obj:
    return patched(obj, decided(obj, mode, now=now).operations)


def taints(obj: Obj) -> list[str]:
    return [one["key"] for one in obj["spec"].get("taints", ())]


def test_enforce_cordons_taints_and_annotates() -> None:
    obj = quarantined(node_object("n1", spec={"taints": [OTHER]}))
    assert obj["spec"]["unschedulable"] is True
    assert obj["spec"]["taints"] == [OTHER, {"key": names.TAINT, "value": "hardware", "effect": "NoSchedule"}]
    mark = json.loads(obj["metadata"]["annotations"][names.QUARANTINE])
    assert mark["job"] == "team/q"
    assert mark["incident"] == "i-3"
    assert mark["set"] == ["cordon", "taint"]
    assert decided(obj).operations == [], "the node is quarantined only once"
    assert decided(obj).granted


def test_annotate_touches_nothing_else() -> None:
    obj = quarantined(node_object("n1"), "Annotate")
    assert obj["spec"] == {}
    assert json.loads(obj["metadata"]["annotations"][names.QUARANTINE])["set"] == []
    stronger = quarantined(obj, "Enforce")
    assert stronger["spec"]["unschedulable"] is True


@pytest.mark.parametrize(
    ("ceiling", "job", "granted"),
    [("Observe", "Enforce", False), ("Enforce", "Observe", False), ("Annotate", "Enforce", True)],
)
def test_the_weaker_of_both_modes_applies(ceiling: str, job: str, granted: bool) -> None:
    decision = decided(node_object("n1"), job, ceiling)
    assert decision.granted is granted
    assert not any("spec" in one["path"] for one in decision.operations)
    if not granted:
        assert "Observe" in decision.refused


def test_a_write_in_between_makes_the_patch_fail() -> None:
    obj = node_object("n1")
    operations = decided(obj).operations
    assert operations[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "1"}
    obj["metadata"]["resourceVersion"] = "2"
    with pytest.raises(Exception, match="test"):
        patched(obj, operations)


@given(
    cordoned=st.booleans(),
    others=st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
    annotated=st.booleans(),
    mode=st.sampled_from(["Annotate", "Enforce"]),
)
def test_release_leaves_the_node_as_it_was(
    cordoned: bool, others: list[str], annotated: bool, mode: str
) -> None:
    spec: dict[str, Any] = {"unschedulable": True} if cordoned else {}
    if others:
        spec["taints"] = [{"key": key, "effect": "NoSchedule"} for key in others]
    metadata = {"annotations": {"mine": "1"}} if annotated else {}
    before = node_object("n1", spec=spec, metadata=metadata)
    obj = quarantined(before, mode)
    after = patched(obj, patches.release(node_record(obj)))
    assert after["spec"].get("unschedulable", False) == cordoned
    assert taints(after) == others
    assert names.QUARANTINE not in after["metadata"]["annotations"]


def test_release_does_not_lift_a_cordon_that_was_there_before() -> None:
    obj = quarantined(node_object("n1", spec={"unschedulable": True}))
    assert json.loads(obj["metadata"]["annotations"][names.QUARANTINE])["set"] == ["taint"]
    assert patched(obj, patches.release(node_record(obj)))["spec"]["unschedulable"] is True


def test_uncordoning_a_node_releases_it_and_prevents_a_new_quarantine() -> None:
    obj = quarantined(node_object("n1"))
    del obj["spec"]["unschedulable"]
    operations = detect_manual_release(node_record(obj), NOW + 60)
    obj = patched(obj, operations)
    assert names.TAINT not in taints(obj)
    assert detect_manual_release(node_record(obj), NOW + 61) == []
    again = decided(obj, now=NOW + 61)
    assert "person" in again.refused
    other = decide(node_record(obj), request(incident="i-9"), "Enforce", "", NOW + 1800)
    assert "person" in other.refused, "no quarantine for another incident within an hour either"
    assert decide(node_record(obj), request(incident="i-9"), "Enforce", "", NOW + 3700).granted
    assert not decide(node_record(obj), request(), "Enforce", "", NOW + 3700).granted, (
        "no second quarantine for the same incident"
    )


def test_a_released_node_is_not_quarantined_again_for_the_same_incident() -> None:
    """The driver's request stays until it has read the result, which may be after the release."""
    obj = quarantined(node_object("n1"))
    obj = patched(obj, patches.release(node_record(obj)))
    same = decide(node_record(obj), request(), "Enforce", "", NOW + 60, granted_before=True)
    assert (same.operations, same.granted) == ([], True)
    assert decide(node_record(obj), request(incident="i-9"), "Enforce", "", NOW + 60).operations


def test_removing_the_taint_keeps_the_cordon() -> None:
    obj = quarantined(node_object("n1"))
    obj["spec"]["taints"] = []
    obj = patched(obj, detect_manual_release(node_record(obj), NOW))
    assert obj["spec"]["unschedulable"] is True
    mark = mark_of(node_record(obj))
    assert mark is not None
    assert mark.overridden == NOW


def test_removing_the_annotation_removes_the_taint() -> None:
    obj = quarantined(node_object("n1"))
    obj["metadata"]["annotations"] = {}
    obj = patched(obj, detect_manual_release(node_record(obj), NOW))
    assert names.TAINT not in taints(obj)
    assert obj["spec"]["unschedulable"] is True, "without the mark it is unknown who cordoned the node"


def fleet(total: int, out: int, since: float) -> list[Obj]:
    nodes = [node_object(f"n{number}") for number in range(total)]
    return [quarantined(obj, now=since) if number < out else obj for number, obj in enumerate(nodes)]


def why(nodes: list[Obj], limits: Limits, now: float = NOW) -> str:
    return breaker_open_reason([node_record(obj) for obj in nodes], limits, now)


def test_the_breaker_counts_by_the_hour_and_by_the_share() -> None:
    assert why(fleet(100, 3, NOW), Limits(per_hour=4, share=0.5)) == ""
    assert "within the hour" in why(fleet(100, 4, NOW), Limits(per_hour=4, share=0.5))
    assert why(fleet(100, 4, NOW - 3601), Limits(per_hour=4, share=0.5)) == ""
    assert "10%" in why(fleet(100, 10, NOW - 3601), Limits(per_hour=50, share=0.1))
    assert why(fleet(3, 0, NOW), Limits(per_hour=4, share=0.1)) == "", "one node may always be quarantined"
    assert why(fleet(3, 1, NOW - 3601), Limits(per_hour=4, share=0.1))


def test_the_breaker_counts_released_nodes() -> None:
    nodes = fleet(100, 4, NOW)
    released = [
        patched(obj, patches.release(node_record(obj))) if mark_of(node_record(obj)) else obj for obj in nodes
    ]
    assert "within the hour" in why(released, Limits(per_hour=4, share=0.5), NOW + 60)


def test_an_open_breaker_refuses_new_nodes_and_keeps_old_ones() -> None:
    fresh, old = node_object("n1"), quarantined(node_object("n1"))
    assert "breaker open" in decided(fresh, breaker="too many").refused
    assert decided(old, breaker="too many").granted


def test_malformed_annotations_get_defaults() -> None:
    for text in ("", "nonsense", "[]", '{"since": "x", "set": 3, "mode": 7}'):
        obj = node_object(
            "n1", metadata={"annotations": {names.QUARANTINE: text, names.QUARANTINE_HISTORY: text}}
        )
        record = node_record(obj)
        mark_of(record)
        detect_manual_release(record, NOW)
        patched(obj, patches.release(record))
        assert why([obj], Limits()) in ("", "1 of 1 nodes are quarantined, the limit is 1 (10%)")


def test_the_taint_has_the_class_of_the_cause_whatever_words_are_in_the_reason() -> None:
    obj = node_object("n1")
    asked = JobRequest("team/q", "n1", "i-3", "slow: XID 79 on maintenance-7", "Enforce", "numerics")
    obj = patched(obj, decide(node_record(obj), asked, "Enforce", "", NOW).operations)
    assert obj["spec"]["taints"][0]["value"] == "numerics"
    mark = mark_of(node_record(obj))
    assert mark is not None
    assert mark.cause == "numerics"
    assert quarantine_class("node_lost") == "lost"
    assert quarantine_class("user_code") == quarantine_class("") == "other"
