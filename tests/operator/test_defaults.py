"""Cluster defaults of spec.detection: the operator's --detection-defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kube_world import World, job_object
from megascale_operator.driver.commands import manifest_of
from megascale_operator.reconcile import names
from megascale_operator.reconcile.defaults import DEFAULTS_FILE, DetectionDefaults, origins
from megascale_operator.reconcile.observed import Settings

from megascale.errors import ManifestError
from megascale.job import parse_job
from megascale.job.revision import revision_of

TEXT = "shadow: [straggler]\nhang: {steps: 5, marginSeconds: 30}"
OWN = {"hang": {"steps": 7}, "lemon": {"incidents": 6}}


def defaults(text: str = TEXT) -> DetectionDefaults:
    found = DetectionDefaults.parse(text)
    assert found is not None
    return found


def test_the_cluster_s_values_fill_fields_that_the_job_does_not_set() -> None:
    detection = manifest_of(job_object("q", detection=OWN), "", defaults()).spec.detection
    assert (detection.shadow, detection.hang.margin_seconds) == (["straggler"], 30)
    assert (detection.hang.steps, detection.lemon.incidents, detection.blame.limit) == (7.0, 6, 2.5)


def test_a_job_can_override_a_value() -> None:
    own = {"shadow": [], "hang": {"steps": 3, "marginSeconds": 10}}
    filled = manifest_of(job_object("q", detection=own), "", defaults())
    assert filled.spec == manifest_of(job_object("q"), "").spec


def test_a_job_without_the_section_gets_the_values_too() -> None:
    assert manifest_of(job_object("q"), "", defaults()).spec.detection.hang.steps == 5.0
    assert manifest_of(job_object("q", detection=None), "", defaults()).spec.detection.hang.steps == 5.0


def test_slots_and_driver_have_the_same_manifest(tmp_path: Path) -> None:
    """The operator fills in the slots' manifest, the driver its own from the defaults in the ConfigMap."""
    stored = job_object("q", detection=OWN)
    world = World(defaults().fill(stored), Settings("image:1", detection=defaults()))
    world.settle()
    data = world.owned["ConfigMap", names.job_map("q")]["data"]
    for name in ("job.yaml", DEFAULTS_FILE):
        (tmp_path / name).write_text(data[name])
    slots = parse_job(data["job.yaml"])
    driver = manifest_of(stored, "", DetectionDefaults.beside(tmp_path / "job.yaml"))
    assert slots.spec.detection == driver.spec.detection
    assert slots.spec.detection.hang.margin_seconds == 30
    assert revision_of(slots) == revision_of(driver)


def test_without_defaults_there_is_no_file_for_the_driver(tmp_path: Path) -> None:
    world = World()
    world.settle()
    assert DEFAULTS_FILE not in world.owned["ConfigMap", names.job_map("q")]["data"]
    assert DetectionDefaults.beside(tmp_path / "job.yaml") is None
    assert DetectionDefaults.parse("") is None


def test_each_value_has_its_origin() -> None:
    found = origins(json.loads(defaults().text()), OWN)
    assert found == {
        "hang.marginSeconds": {"value": 30, "from": "cluster"},
        "hang.steps": {"value": 7, "from": "job"},
        "lemon.incidents": {"value": 6, "from": "job"},
        "shadow": {"value": ["straggler"], "from": "cluster"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hang: {steps: 0}", r"--detection-defaults:1: hang.steps: got 0, expected a number from 1 to 1000"),
        ("hangs: {steps: 3}", 'unknown field "hangs" .did you mean hang'),
        ("shadow: [exits]", r'shadow\[0\]: got "exits", expected one of all, silence'),
        ("hang:", "hang: is empty"),
        ("- hang", "expected a section with any of shadow, hang"),
        ("{", "YAML syntax"),
    ],
)
def test_invalid_values_are_refused_at_the_start(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        DetectionDefaults.parse(text)
