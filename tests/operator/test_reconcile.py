"""Reconciling a job: pods created and deleted, status and Events, and that nothing is written needlessly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kube_world import World, avoided, job_object, node_object
from megascale_operator.kube.clock import stamp
from megascale_operator.reconcile import names
from megascale_operator.reconcile.plan import Apply, Create, Delete, Patch

NODES = ("n1", "n2", "n3", "n4", "n5", "n6")


def running(**spec: Any) -> World:
    """A job whose pods are running."""
    world = World(job_object(**spec))
    world.nodes = {name: node_object(name) for name in NODES}
    world.tick()
    world.kubelet()
    world.settle()
    world.driver_reports(jobState="running", state="running", requests={"slots": 3})
    world.settle()
    return world


def slots_file(world: World) -> dict[str, Any]:
    return json.loads(world.owned["ConfigMap", "q-slots"]["data"]["slots.json"])


def gone(world: World) -> list[tuple[int, str, bool]]:
    return [(one["slot"], one["reason"], one["planned"]) for one in slots_file(world)["gone"]]


def test_a_new_job_gets_its_objects_its_driver_and_a_slot_per_node_and_spare() -> None:
    world = running()
    assert sorted(world.pods) == ["q-0-0", "q-1-0", "q-2-0", "q-driver-0"]
    assert {kind for kind, _ in world.owned} == {"ConfigMap", "ServiceAccount", "Role", "RoleBinding"}
    assert {name for kind, name in world.owned if kind == "ConfigMap"} == {
        "q-job",
        "q-driver",
        "q-record",
        "q-slots",
    }
    assert world.job["metadata"]["finalizers"] == [names.FINALIZER]
    assert all(
        owned_object["metadata"]["ownerReferences"][0]["uid"] == "uid-job"
        for owned_object in world.owned.values()
    )
    assert world.job["status"]["state"] == "Running"
    assert world.job["status"]["nodes"] == "3/3"
    assert [slot["ready"] for slot in slots_file(world)["slots"]] == [True, True, True]


def test_slots_json_has_the_topology_domains_of_slots() -> None:
    world = running(scheduling={"topologyKeys": ["zone", "rack"]})
    first = slots_file(world)["slots"][0]["node"]
    labels = {"zone": "z1", "rack": "r7", "other": "x"}
    world.nodes[first] = node_object(first, metadata={"labels": labels})
    world.settle()
    reported = [slot["domains"] for slot in slots_file(world)["slots"]]
    assert reported == [["z1", "r7"], ["", ""], ["", ""]]


def test_an_unchanged_job_is_not_written() -> None:
    world = running()
    for _ in range(10):
        world.now += 7
        world.driver_reports()
        assert world.plan().actions == []


def test_slots_are_written_at_most_once_a_second() -> None:
    world = running()
    world.run("q-0-0", podIP="10.0.0.9")
    world.slots_written_at = world.now - 0.3
    plan = world.plan()
    assert not any(isinstance(action, Create) for action in plan.actions)
    assert plan.requeue_s == pytest.approx(0.7, abs=0.01)


def test_counts_alone_are_written_every_two_seconds_and_changes_of_conditions_at_once() -> None:
    world = World()
    world.nodes = {name: node_object(name) for name in NODES}
    writes = 0
    for index in range(40):
        world.now += 0.1
        if index == 10:
            world.kubelet()
        if index % 4 == 0:
            for pod in world.slots()[: index // 10]:
                world.run(pod["metadata"]["name"])
        writes += any(isinstance(one, Apply) and one.subresource for one in world.tick().actions)
    world.settle()
    assert world.job["status"]["operator"]["slots"]["ready"] == 3
    assert writes <= 5


def test_a_released_slot_is_replaced_and_its_node_avoided() -> None:
    world = running()
    node = world.pods["q-1-0"]["spec"]["nodeName"]
    world.driver_reports(requests={"slots": 3, "release": ["q-1-0"], "avoidNodes": [node]})
    world.tick()
    assert world.pods["q-1-0"]["metadata"]["deletionTimestamp"]
    assert node in avoided(world.pods["q-1-1"])
    world.kubelet()
    world.settle()
    assert sorted(world.pods) == ["q-0-0", "q-1-1", "q-2-0", "q-driver-0"]
    assert gone(world) == [(1, "released: by the driver", True)]
    assert world.pods["q-1-1"]["spec"]["nodeName"] != node


def test_a_restarted_slot_comes_back_to_its_node() -> None:
    world = running()
    node = world.pods["q-2-0"]["spec"]["nodeName"]
    world.driver_reports(requests={"slots": 3, "restart": [{"pod": "q-2-0", "id": "e-17"}]})
    world.tick()
    assert "q-2-1" not in world.pods, "the old pod still occupies the node"
    world.kubelet()
    world.now += 1
    world.tick()
    world.kubelet()
    assert world.pods["q-2-1"]["spec"]["nodeName"] == node
    world.settle()
    assert gone(world) == [(2, "restart: e-17", True)]


def test_surplus_slots_stay_until_they_are_released() -> None:
    world = running()
    world.driver_reports(requests={"slots": 1})
    world.settle()
    assert len(world.slots()) == 3


def test_more_slots_than_a_job_can_use_are_refused() -> None:
    world = running()
    world.driver_reports(requests={"slots": 5000})
    world.tick()
    assert len(world.slots()) == 3 + 64
    refusals = world.job["status"]["operator"]["refusals"]
    assert [one["request"] for one in refusals] == ["slots"]
    assert "5000" in refusals[0]["reason"]


@pytest.mark.parametrize("reason", ["EvictionByEvictionAPI", "PreemptionByScheduler", "TerminationByKubelet"])
def test_an_evicted_slot_is_planned_and_replaced_before_it_is_gone(reason: str) -> None:
    world = running()
    world.disrupt("q-0-0", reason)
    world.tick()
    assert "q-0-1" in world.pods
    world.now += 1
    world.tick()
    assert slots_file(world)["slots"][0]["leaving"] == f"evicted: {reason}"
    world.remove("q-0-0")
    world.settle()
    assert gone(world) == [(0, f"evicted: {reason}", True)]


def test_the_pod_of_a_deleted_node_is_removed_at_once_and_blamed_on_the_node() -> None:
    world = running()
    node = world.pods["q-0-0"]["spec"]["nodeName"]
    del world.nodes[node]
    assert not world.plan().actions or world.pods["q-0-0"], "an unknown node is not a deleted node"
    world.gone_nodes.add(node)
    plan = world.tick()
    assert [action.grace_s for action in plan.actions if isinstance(action, Delete)] == [0]
    world.kubelet()
    world.settle()
    assert gone(world) == [(0, f"node: {node} does not exist any more", False)]


def test_a_silent_node_keeps_its_pod() -> None:
    world = running()
    node = world.pods["q-0-0"]["spec"]["nodeName"]
    world.nodes[node] = node_object(node, ready="Unknown")
    world.settle()
    assert "deletionTimestamp" not in world.pods["q-0-0"]["metadata"]
    assert slots_file(world)["slots"][0]["nodeReady"] is False


def test_a_pod_that_does_not_leave_a_convicted_node_is_forced_after_two_minutes() -> None:
    world = running()
    node = world.pods["q-0-0"]["spec"]["nodeName"]
    world.driver_reports(requests={"slots": 3, "release": ["q-0-0"], "avoidNodes": [node]})
    world.tick()
    mark = json.dumps({"mode": "Enforce", "since": world.now, "set": ["cordon", "taint"]})
    taint = {"key": names.TAINT, "value": "hardware", "effect": "NoSchedule"}
    world.nodes[node] = node_object(
        node,
        metadata={"annotations": {names.QUARANTINE: mark}},
        spec={"taints": [taint], "unschedulable": True},
    )
    world.now += 119
    assert not [action for action in world.plan().actions if isinstance(action, Delete)]
    world.now += 2
    assert [a.grace_s for a in world.plan().actions if isinstance(a, Delete)] == [0]


def test_an_agent_that_ended_well_is_released_and_one_that_failed_is_not() -> None:
    world = running()
    for name, code in (("q-0-0", 0), ("q-1-0", 3)):
        ended = {"state": {"terminated": {"exitCode": code}}, "restartCount": 0}
        world.run(name, phase="Succeeded" if code == 0 else "Failed", containerStatuses=[ended])
    world.settle()
    assert sorted(gone(world)) == [(0, "released: the agent ended", True), (1, "failed: exit code 3", False)]
    assert {"q-0-1", "q-1-1"} <= set(world.pods)


def test_an_agent_that_the_kubelet_ended_was_not_released_by_its_driver() -> None:
    world = running()
    ended = {"state": {"terminated": {"exitCode": 0}}, "restartCount": 0}
    world.pods["q-0-0"]["metadata"]["deletionTimestamp"] = stamp(world.now)
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    world.run("q-0-0", phase="Succeeded", containerStatuses=[ended])
    world.run("q-1-0", phase="Succeeded", containerStatuses=[ended], conditions=[evicted])
    world.settle()
    assert sorted(gone(world)) == [(0, "deleted", True), (1, "evicted: EvictionByEvictionAPI", True)]


def test_the_kubelet_restarts_containers_and_the_operator_replaces_crash_loops() -> None:
    world = running()
    asked = {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 75}}, "restartCount": 5}
    world.run("q-0-0", containerStatuses=[asked])
    once = {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137}}, "restartCount": 1}
    world.run("q-1-0", containerStatuses=[once])
    looping = {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1}},
        "restartCount": 4,
    }
    world.run("q-2-0", containerStatuses=[looping], conditions=[])
    world.tick()
    deleting = [name for name, pod in world.pods.items() if pod["metadata"].get("deletionTimestamp")]
    assert deleting == ["q-2-0"]


def test_slots_that_keep_failing_are_made_more_and_more_slowly() -> None:
    world = running()
    gaps = []
    for _ in range(6):
        name = next(
            pod["metadata"]["name"] for pod in world.slots() if pod["metadata"]["labels"][names.SLOT] == "0"
        )
        world.run(name, phase="Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 1}}}])
        failed_at = world.now
        while not any(pod["status"]["phase"] == "Pending" for pod in world.slots()):
            world.now += 0.5
            world.tick()
        gaps.append(world.now - failed_at)
        world.kubelet()
    assert gaps[0] <= 1.5
    assert gaps[-1] >= 8
    assert sorted(gaps) == gaps


def test_a_node_that_fails_its_check_is_avoided() -> None:
    world = running()
    verdict = json.dumps({"verdict": "convicted", "reason": "products gave wrong numbers"})
    check = {"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1, "message": verdict}}}
    node = world.pods["q-0-0"]["spec"]["nodeName"]
    world.run("q-0-0", phase="Pending", conditions=[], initContainerStatuses=[check])
    world.tick()
    world.kubelet()
    world.settle()
    assert gone(world) == [(0, "check: products gave wrong numbers", False)]
    assert node in avoided(world.pods["q-0-1"])
    assert world.job["status"]["operator"]["avoid"] == [node]


def test_a_driver_whose_node_is_gone_gets_a_successor() -> None:
    world = running()
    world.gone_nodes.add(world.pods["q-driver-0"]["spec"]["nodeName"])
    del world.nodes[world.pods["q-driver-0"]["spec"]["nodeName"]]
    world.tick()
    assert "q-driver-1" in world.pods
    assert "q-driver-0" not in world.pods


def test_a_driver_that_is_being_deleted_gets_a_successor_at_once() -> None:
    world = running()
    world.pods["q-driver-0"]["metadata"]["deletionTimestamp"] = stamp(world.now)
    world.tick()
    assert "q-driver-1" in world.pods


def test_a_driver_that_fails_at_once_is_created_again_after_a_pause() -> None:
    world = running()
    world.run("q-driver-0", phase="Failed")
    world.pods["q-driver-0"]["metadata"]["creationTimestamp"] = stamp(world.now)
    plan = world.plan()
    assert not [action for action in plan.actions if isinstance(action, Create)]
    assert plan.requeue_s is not None
    assert plan.requeue_s <= 10


def test_slots_get_the_annotation_of_a_new_driver_once() -> None:
    world = running()
    world.owned["ConfigMap", "q-driver"]["data"] = {"driver.json": '{"term": 1}'}
    assert len([one for one in world.tick().actions if isinstance(one, Patch)]) == 3
    assert world.plan().actions == []
    world.remove("q-1-0")
    world.settle()
    world.kubelet()
    world.settle()
    world.owned["ConfigMap", "q-driver"]["data"] = {"driver.json": '{"term": 2}'}
    assert len([one for one in world.tick().actions if isinstance(one, Patch)]) == 3
    assert world.plan().actions == []


def test_suspend_waits_for_the_save_and_resume_makes_everything_again() -> None:
    world = running()
    world.edit(suspend=True)
    world.settle()
    assert len(world.pods) == 4, "the driver has not saved yet"
    assert world.job["status"]["state"] == "Suspending"
    world.driver_reports(jobState="suspended")
    for _ in range(4):
        world.now += 1
        world.tick()
        world.kubelet()
    assert world.pods == {}
    assert world.condition("Suspended") == "True"
    world.settle()
    world.edit(suspend=False)
    world.tick()
    assert sorted(world.pods) == ["q-0-1", "q-1-1", "q-2-1", "q-driver-1"]
    world.settle()
    assert world.condition("Suspended") == "False"


def test_a_job_that_is_resumed_smaller_does_not_get_its_old_size() -> None:
    world = running()
    world.edit(suspend=True)
    world.driver_reports(jobState="suspended", requests={"slots": 3})
    for _ in range(4):
        world.now += 1
        world.tick()
        world.kubelet()
    world.settle()
    world.edit(suspend=False, spareNodes=0)
    world.settle()
    assert len(world.slots()) == 2


def test_a_status_of_an_earlier_suspension_is_ignored() -> None:
    world = running()
    world.driver_reports(jobState="suspended")
    world.edit(suspend=True)
    world.settle()
    assert len(world.pods) == 4


def test_a_job_that_is_created_suspended_has_no_pods() -> None:
    world = World(job_object(suspend=True))
    world.settle()
    assert world.pods == {}
    assert world.job["status"]["state"] == "Suspended"


@pytest.mark.parametrize(
    ("state", "condition", "shown"),
    [
        ("completed", "Complete", "Completed"),
        ("failed", "Failed", "Failed"),
        ("stopped", "Failed", "Stopped"),
    ],
)
def test_a_job_that_ended_keeps_its_status_and_loses_its_pods(state: str, condition: str, shown: str) -> None:
    world = running()
    world.driver_reports(state=state, jobState="finished", reason="because")
    for _ in range(4):
        world.now += 1
        world.tick()
        world.kubelet()
    world.settle()
    assert world.pods == {}
    assert world.condition(condition) == "True"
    assert world.job["status"]["state"] == shown
    assert world.job["status"]["completionTime"]


def test_a_finished_job_is_deleted_after_its_time() -> None:
    world = running(ttlSecondsAfterFinished=60)
    world.driver_reports(state="completed")
    for _ in range(4):
        world.now += 1
        world.tick()
        world.kubelet()
    assert "deletionTimestamp" not in world.job["metadata"]
    world.now += 60
    world.tick()
    assert world.job["metadata"]["deletionTimestamp"]


def test_at_its_deadline_a_job_saves_stops_and_fails() -> None:
    world = running(activeDeadlineSeconds=600)
    world.now += 600
    world.driver_reports()
    plan = world.tick()
    assert any(isinstance(action, Patch) for action in plan.actions)
    assert json.loads(world.job["metadata"]["annotations"][names.COMMAND])["command"] == "stop"
    assert len(world.pods) == 4
    world.driver_reports(state="stopped", jobState="finished")
    world.now += 1
    world.tick()
    assert world.condition("Failed") == "True"
    reason = next(one["reason"] for one in world.job["status"]["conditions"] if one["type"] == "Failed")
    assert reason == "DeadlineExceeded"


def test_the_wait_for_a_driver_at_the_deadline_is_bounded() -> None:
    world = running(activeDeadlineSeconds=600, deletionSaveSeconds=30)
    world.now += 620
    world.tick()
    assert world.condition("Failed") == "False"
    world.now += 15
    world.tick()
    assert world.condition("Failed") == "True"


def deleted(world: World) -> World:
    world.job["metadata"]["deletionTimestamp"] = stamp(world.now)
    return world


def test_a_job_is_shown_as_deleting_until_it_is_gone() -> None:
    world = deleted(running())
    before = {key: value for key, value in world.job["status"].items() if key not in ("state", "driver")}
    plan = world.tick()
    assert world.job["status"]["state"] == "Deleting"
    assert [one for one in plan.actions if not isinstance(one, Apply)] == [], "the save is waited for"
    applied = next(one.body["status"] for one in plan.actions if isinstance(one, Apply))
    assert applied == {**before, "state": "Deleting"}, "other fields are kept, the driver's are not touched"
    assert world.plan().actions == [], "written once"


def test_a_deleted_job_is_saved_first() -> None:
    world = deleted(running())
    world.tick()
    world.now += 60
    assert world.plan().actions == []
    world.driver_reports(state="stopped")
    world.tick()
    assert all(pod["metadata"].get("deletionTimestamp") for pod in world.pods.values())
    assert not world.deleted, "pods are still there"
    world.kubelet()
    world.tick()
    assert world.deleted


def test_the_wait_for_a_save_before_deletion_is_bounded() -> None:
    world = deleted(running())
    world.now += 121
    world.tick()
    world.kubelet()
    world.tick()
    assert world.deleted


def test_pods_that_never_go_do_not_hold_the_job_for_ever() -> None:
    world = deleted(running())
    world.now += 121
    world.tick()
    world.now += 180
    world.tick()
    assert world.deleted


def test_the_escape_annotation_skips_the_save() -> None:
    world = deleted(running())
    world.job["metadata"]["annotations"] = {names.FORCE_DELETE: "true"}
    world.tick()
    assert world.deleted


def test_a_silent_driver_is_not_shown_as_running() -> None:
    world = running()
    world.now += 100
    plan = world.tick()
    assert world.condition("Running") == "Unknown"
    assert ("Warning", "DriverSilent") in [(event.type, event.reason) for event in plan.events]


def test_condition_changes_are_recorded_once() -> None:
    world = running()
    incident = {"id": "i-1", "reason": "rank 1 was killed", "action": "restart in place"}
    world.driver_reports(incident=incident, jobState="stopping")
    assert [event.reason for event in world.tick().events] == ["Recovering"]
    assert world.tick().events == []
    world.driver_reports(incident=None, jobState="running")
    assert [event.reason for event in world.tick().events] == ["Running", "Recovered"]


def test_refusals_keep_the_time_they_began() -> None:
    world = running()
    world.refused = ({"request": "quarantine", "node": "n1", "incident": "i-1", "reason": "breaker open"},)
    world.granted = (("n2", "i-2"),)
    world.settle()
    first = world.job["status"]["operator"]
    world.now += 100
    world.driver_reports()
    assert world.plan().actions == []
    began = first["refusals"][0]["time"]
    assert began < stamp(world.now - 99)
    assert first["quarantined"] == [{"node": "n2", "incident": "i-2", "time": began}]


def test_answers_stay_when_the_driver_withdraws_its_requests() -> None:
    world = running()
    refused = {"request": "quarantine", "node": "n1", "incident": "i-1", "reason": "breaker open"}
    world.refused, world.granted = (refused,), (("n2", "i-2"),)
    world.settle()
    world.refused, world.granted = (), ()
    world.driver_reports(requests={"slots": 5000})
    world.settle()
    operator = world.job["status"]["operator"]
    assert [one["request"] for one in operator["refusals"]] == ["quarantine", "slots"]
    assert [one["node"] for one in operator["quarantined"]] == ["n2"]
    world.driver_reports(requests={"slots": 3})
    world.refused = ({**refused, "node": "n2", "incident": "i-2"},)
    world.granted = (("n1", "i-1"),)
    world.settle()
    operator = world.job["status"]["operator"]
    assert [one["node"] for one in operator["refusals"]] == ["n2"], "the newest answer counts"
    assert [one["node"] for one in operator["quarantined"]] == ["n1"]


def test_the_newest_answers_are_kept_and_all_current_ones() -> None:
    world = running()
    for number in range(100):
        world.refused = (
            {"request": "quarantine", "node": "n1", "incident": f"i-{number}", "reason": "breaker open"},
        )
        world.granted = (("n2", f"i-{number}"),)
        world.settle()
    operator = world.job["status"]["operator"]
    assert [one["incident"] for one in operator["refusals"]] == [f"i-{n}" for n in range(80, 100)]
    assert [one["incident"] for one in operator["quarantined"]] == [f"i-{n}" for n in range(36, 100)]
    world.refused = tuple({**world.refused[0], "incident": f"j-{n}"} for n in range(64))
    world.settle()
    assert len(world.job["status"]["operator"]["refusals"]) == 64
    world.driver_reports()
    world.settle()
    assert world.plan().actions == []


class Lives(RuleBasedStateMachine):
    """Random events of pods and requests: no pod name is used twice, and the job gets all its slots."""

    @initialize()
    def start(self) -> None:
        self.world = running()
        self.wanted = 3

    def pod(self, data: st.DataObject) -> str | None:
        living = sorted(
            pod["metadata"]["name"]
            for pod in self.world.slots()
            if pod["status"]["phase"] in ("Pending", "Running")
        )
        return data.draw(st.sampled_from(living)) if living else None

    @rule(data=st.data(), wanted=st.integers(0, 6), seconds=st.integers(0, 50))
    def request(self, data: st.DataObject, wanted: int, seconds: int) -> None:
        names_ = [self.pod(data) for _ in range(2)]
        avoid = data.draw(st.lists(st.sampled_from(NODES[:2]), unique=True))
        self.wanted = wanted
        self.world.now += seconds
        self.world.driver_reports(
            requests={
                "slots": wanted,
                "release": [name for name in names_[:1] if name],
                "restart": [{"pod": name, "id": "e"} for name in names_[1:] if name],
                "avoidNodes": avoid,
            }
        )

    @rule(data=st.data(), how=st.sampled_from(["evict", "delete", "fail", "end", "vanish"]))
    def happen(self, data: st.DataObject, how: str) -> None:
        name = self.pod(data)
        if name is None:
            return
        match how:
            case "evict":
                self.world.disrupt(name, "EvictionByEvictionAPI")
            case "delete":
                self.world.pods[name]["metadata"]["deletionTimestamp"] = stamp(self.world.now)
            case "fail" | "end":
                code = 0 if how == "end" else 1
                self.world.run(
                    name,
                    phase="Failed" if code else "Succeeded",
                    containerStatuses=[{"state": {"terminated": {"exitCode": code}}}],
                )
            case "vanish":
                self.world.remove(name)

    @rule(seconds=st.floats(0.1, 30))
    def time(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.tick()

    @rule()
    def kubelet(self) -> None:
        self.world.kubelet()

    @rule()
    def lose_memory(self) -> None:
        """Another replica leads: only the state stored in the cluster is left."""
        self.world.ended.clear()

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def never_two_living_pods_of_a_slot(self) -> None:
        living = [
            pod["metadata"]["labels"][names.SLOT]
            for pod in self.world.slots()
            if not pod["metadata"].get("deletionTimestamp")
            and pod["status"]["phase"] in ("Pending", "Running")
            and not any(one["type"] == "DisruptionTarget" for one in pod["status"].get("conditions", ()))
        ]
        assert len(living) == len(set(living))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.driver_reports(requests={"slots": self.wanted})
        for pod in self.world.slots():
            pod["status"]["conditions"] = []
        for _ in range(12):
            self.world.now += 301
            self.world.driver_reports()
            self.world.tick()
            self.world.kubelet()
        self.world.driver_reports()
        self.world.settle()
        assert len(self.world.slots()) >= self.wanted
        self.world.now += 5
        self.world.driver_reports()
        assert self.world.plan().actions == []


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
