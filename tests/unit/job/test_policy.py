"""Every threshold of the core can be set by somebody, and changing it does not disturb the ranks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from megascale.core.contract.policy import LogRuleSpec, Policy, RecoveryOverride
from megascale.core.contract.vocabulary import Detector
from megascale.driver.policy import needs_restart, policy_of, spare_nodes
from megascale.job import TrainingJob, from_mapping
from megascale.job.detection import ALL, Detection

BASE: dict[str, Any] = {
    "nodes": 8,
    "steps": 100,
    "runtime": {
        "megatron": {
            "model": {"preset": "tiny"},
            "data": {"path": "x", "sequenceLength": 64, "microBatch": 1, "globalBatch": 16},
        }
    },
}
COMMAND = {"runtime": {"megatron": None, "command": {"args": ["true"]}}}
LAYOUT = {"runtime": {"megatron": {"parallelism": {"pipeline": 2}}}}
FROM_MANIFEST: list[tuple[str, dict[str, Any], Any]] = [
    ("nodes", {"nodes": 4}, 4),
    ("spare_nodes", {"spareNodes": 7}, 7),
    ("min_nodes", {"minNodes": 4}, 4),
    ("ranks_per_node", {"ranksPerNode": 2}, 2),
    ("node_counts", {"minNodes": 4}, (8, 4)),
    ("pipeline", LAYOUT, 2),
    ("model_nodes", LAYOUT, 2),
    ("steps", {"steps": 7}, 7),
    ("suspend", {"suspend": True}, True),
    ("reports_steps", COMMAND, False),
    ("memory_snapshots", {"checkpoint": {"memory": {"enabled": False}}}, False),
    ("silence_s", {"health": {"silenceSeconds": 21}}, 21.0),
    ("flap_tolerance_s", {"health": {"flapToleranceSeconds": 21}}, 21.0),
    ("startup_s", {"health": {"startupSeconds": 21}}, 21.0),
    ("reconnect_grace_s", {"health": {"reconnectGraceSeconds": 21}}, 21.0),
    ("hang_steps", {"detection": {"hang": {"steps": 4.5}}}, 4.5),
    ("hang_margin_s", {"detection": {"hang": {"marginSeconds": 21}}}, 21.0),
    ("kill_s", {"recovery": {"killSeconds": 21}}, 21.0),
    ("save_s", {"checkpoint": {"saveSeconds": 21}}, 21.0),
    ("max_restarts", {"recovery": {"maxRestarts": 7}}, 7),
    ("budgets", {"recovery": {"budgets": {"hang": 2}}}, {"hang": 2}),
    ("no_progress_limit", {"recovery": {"noProgressLimit": 7}}, 7),
    ("minimum_run_s", {"recovery": {"minimumRunSeconds": 21}}, 21.0),
    ("backoff_limit_s", {"recovery": {"backoffLimitSeconds": 21}}, 21.0),
    (
        "overrides",
        {"recovery": {"overrides": [{"match": {"class": "gpu", "message": "a.b"}, "action": "fail_job"}]}},
        (RecoveryOverride("fail_job", category="gpu", message="a.b"),),
    ),
    (
        "log_rules",
        {"logRules": [{"match": {"pattern": "a.b"}, "action": "alert"}]},
        (LogRuleSpec("logRules[0]", pattern="a.b", category="framework", action="alert"),),
    ),
    ("node_blame_limit", {"detection": {"blame": {"limit": 4}}}, 4.0),
    ("blame_half_life_s", {"detection": {"blame": {"halfLifeSeconds": 21}}}, 21.0),
    ("lemon_incidents", {"detection": {"lemon": {"incidents": 7}}}, 7),
    ("lemon_window_s", {"detection": {"lemon": {"windowSeconds": 21}}}, 21.0),
    ("max_nodes_per_hour", {"remediation": {"maxNodesPerHour": 7}}, 7),
    ("max_excluded_share", {"remediation": {"maxExcludedShare": 0.5}}, 0.5),
    ("shared_cause_nodes", {"detection": {"correlation": {"sharedCauseNodes": 7}}}, 7),
    ("topology_keys", {"scheduling": {"topologyKeys": ["a", "b"]}}, ("b", "a")),
    ("correlate_s", {"detection": {"correlation": {"windowSeconds": 21}}}, 21.0),
    ("attribution_before_s", {"detection": {"correlation": {"beforeSeconds": 21}}}, 21.0),
    ("attribution_after_s", {"detection": {"correlation": {"afterSeconds": 21}}}, 21.0),
    ("tolerated_alerts", {"detection": {"networkAlerts": {"limit": 7}}}, 7),
    ("alert_window_s", {"detection": {"networkAlerts": {"windowSeconds": 21}}}, 21.0),
    ("acquire_tries", {"recovery": {"nodeRequestTries": 7}}, 7),
    ("shrink_after_s", {"recovery": {"shrinkAfterSeconds": 21}}, 21.0),
    ("grow_after_s", {"recovery": {"growAfterSeconds": 21}}, 21.0),
    ("container_restart_s", {"recovery": {"containerRestartSeconds": 21}}, 21.0),
    ("apply_within_s", {"recovery": {"applyWithinSeconds": 21}}, 21.0),
    ("distrust_steps", {"detection": {"numerics": {"distrustSteps": 7}}}, 7),
    ("auto_cadence", {"checkpoint": {"cadence": "auto"}}, True),
    ("node_failures_per_day", {"recovery": {"nodeFailuresPerDay": 0.01}}, 0.01),
    ("straggler_slowdown", {"detection": {"straggler": {"slowdown": 0.2}}}, 0.2),
    ("quarantine", {"remediation": {"mode": "Annotate"}}, True),
    ("shadow", {"detection": {"shadow": ["numerics", "hang"]}}, ("hang", "numerics")),
]
FROM_ENVIRONMENT = {"spares_after_launch", "check_numbers"}
"""Whether the nodes are processes of one machine."""


def job(change: dict[str, Any] | None = None) -> TrainingJob:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    merged = _merged(BASE, change or {})
    runtime = {name: value for name, value in merged["runtime"].items() if value is not None}
    return from_mapping(head | {"spec": merged | {"runtime": runtime}})


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(base[name], value)
        for name, value in change.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | change | nested


def test_every_field_is_set_by_the_manifest_or_the_environment() -> None:
    settable = {name for name, _, _ in FROM_MANIFEST} | FROM_ENVIRONMENT
    assert settable == {field.name for field in fields(Policy)}


@pytest.mark.parametrize(("field", "change", "value"), FROM_MANIFEST, ids=lambda item: str(item)[:40])
def test_the_manifest_sets_it(field: str, change: dict[str, Any], value: object) -> None:
    assert getattr(policy_of(job()), field) != value
    assert getattr(policy_of(job(change)), field) == value


@pytest.mark.parametrize("field", sorted(FROM_ENVIRONMENT))
def test_the_environment_sets_it(field: str) -> None:
    cluster, machine = policy_of(job()), policy_of(job(), shared_machine=True)
    assert getattr(cluster, field) != getattr(machine, field)


def test_defaults_of_the_manifest_are_those_of_the_core() -> None:
    thresholds = {name for name, change, _ in FROM_MANIFEST if {"detection", "recovery"} & change.keys()}
    found, defaults = policy_of(job()), Policy()
    assert len(thresholds) > 20
    for name in thresholds | {"save_s", "max_excluded_share", "max_nodes_per_hour", "auto_cadence"}:
        assert getattr(found, name) == getattr(defaults, name), name


def test_all_is_every_detector() -> None:
    assert policy_of(job({"detection": {"shadow": [ALL]}})).shadow == tuple(Detector)
    assert Detection(shadow=[name.value for name in Detector]).shadowed == tuple(Detector)


def test_spares_follow_the_failure_rate() -> None:
    often = job({"nodes": 512, "recovery": {"nodeFailuresPerDay": 0.02}, **COMMAND})
    assert spare_nodes(often) > spare_nodes(job({"nodes": 512, **COMMAND}))


@pytest.mark.parametrize(("field", "change", "value"), FROM_MANIFEST, ids=lambda item: str(item)[:40])
def test_thresholds_change_without_a_restart(field: str, change: dict[str, Any], value: object) -> None:
    read_by_ranks = {"runtime", "steps", "ranksPerNode"} & change.keys() or field == "memory_snapshots"
    assert needs_restart(job(), job(change)) == bool(read_by_ranks)


def test_what_ranks_have_read_needs_a_restart() -> None:
    for change in ({"network": {"ibTimeout": 20}}, {"checkpoint": {"everySteps": 9}}):
        assert needs_restart(job(), job(change))
