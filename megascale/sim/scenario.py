"""Scenarios as data: a fleet, how it fails, how long each stage of a recovery takes, and who says so."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from megascale.errors import InputError, ManifestError
from megascale.job.base import Section, did_you_mean
from megascale.job.describe import Place
from megascale.job.document import parse
from megascale.job.issues import issues_of
from megascale.sim.delays import Distribution

BUILT_IN: Final = Path(__file__).parent / "scenarios"
COMMON: Final = BUILT_IN / "_stages.yaml"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Basis = Literal["cited", "measured", "derived", "assumed"]


class Duration(Section):
    """How long a stage takes, in seconds; exactly one of the four forms."""

    seconds: float | None = None
    mean: Positive | None = None
    median: Positive | None = None
    p99: Positive | None = None
    low: float | None = None
    high: float | None = None
    basis: Basis
    source: str

    @model_validator(mode="after")
    def _one_form(self) -> Duration:
        self.distribution()
        return self

    def distribution(self) -> Distribution:
        given = {name for name in ("seconds", "mean", "median", "p99", "low", "high") if self._value(name)}
        if given == {"median", "p99"} and self.median and self.p99 and self.p99 > self.median:
            return Distribution("lognormal", self.median, self.p99)
        if given == {"mean"} and self.mean:
            return Distribution("exponential", self.mean)
        if given in ({"high"}, {"low", "high"}) and self.high:
            return Distribution("uniform", self.low or 0.0, self.high)
        if given <= {"seconds"} and self.seconds is not None:
            return Distribution("constant", self.seconds)
        raise ValueError("give seconds, or mean, or median with a larger p99, or low with high")

    def _value(self, name: str) -> float | None:
        value: float | None = getattr(self, name)
        return value


class FaultClass(Section):
    """One line of a failure mix.

    `persistent`: share of these faults that strike again on the same node until it is replaced;
    `sign`, `xid`, `line`: what the node's inspection finds; `errorType`, `text`: a rank's last words.
    """

    name: str
    weight: Positive
    symptom: Literal["crash", "hang", "unclearHang", "nodeDown", "flap", "userError", "nan", "drain"]
    persistent: Share = 0.0
    sign: str = ""
    xid: int | None = None
    line: str = ""
    error_type: str = ""
    text: str = ""


class Failures(Section):
    """How often nodes fail, and of what.

    `check_recall`: share of the nodes computing wrong numbers that a check convicts; 0.7 is what ByteRobust
    reports of NVIDIA's extended utility diagnostics (arXiv 2509.16293).
    """

    per_node_day: Annotated[float, Field(ge=0)]
    source: str
    mix_source: str
    classes: list[FaultClass]
    recurs: Duration
    check_recall: Annotated[float, Field(ge=0, le=1)] = 0.7
    false_silence_per_node_hour: Annotated[float, Field(ge=0)] = 0.0
    false_hang_per_hour: Annotated[float, Field(ge=0)] = 0.0
    false_source: str = ""


class Checkpoints(Section):
    """Durable checkpoints, and snapshots in the memory of other nodes (`memoryEverySteps` 0 = none)."""

    every_seconds: Positive
    stall_seconds: Annotated[float, Field(ge=0)]
    memory_every_steps: Annotated[int, Field(ge=0)] = 0
    memory_stall_seconds: Annotated[float, Field(ge=0)] = 0.0
    basis: Basis
    source: str


class PolicyChange(Section):
    """What another way of running the same job does differently.

    `diagnosed`: the node at fault is found within the stage durations given, so no fault comes back.
    """

    title: str
    spares: Annotated[int, Field(ge=0)] | None = None
    checkpoints: Checkpoints | None = None
    diagnosed: bool = False
    stages: dict[str, Duration] = Field(default_factory=dict)
    thresholds: dict[str, float] = Field(default_factory=dict)


class Figure(Section):
    """A published figure that the simulation is held against."""

    name: Literal[
        "effectiveTrainingTime", "automaticShare", "restarts", "faults", "mtbfHours", "restartsPerDay"
    ]
    value: float
    relation: Literal["equal", "atLeast", "atMost", "about"]
    policy: str
    source: str


class Scenario(Section):
    """A whole simulated campaign."""

    name: str
    title: str
    gpus: Annotated[int, Field(ge=1)]
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    days: Positive
    spares: Annotated[int, Field(ge=0)]
    fleet_nodes: Annotated[int, Field(ge=0)] = 0
    step_seconds: Positive
    step_source: str
    failures: Failures
    checkpoints: Checkpoints
    stages: dict[str, Duration]
    policies: dict[str, PolicyChange] = Field(default_factory=dict)
    figures: list[Figure] = Field(default_factory=list)
    calibrated: str = ""
    assumptions: list[str] = Field(default_factory=list)
    goal: str = ""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


class CommonStages(Section):
    """Durations that every scenario starts from."""

    stages: dict[str, Duration]


S = TypeVar("S", bound=Section)


def names() -> list[str]:
    """Built-in scenarios."""
    return sorted(path.stem for path in BUILT_IN.glob("[!_]*.yaml"))


def load(name: str) -> Scenario:
    """A built-in scenario by name, or one from a file.

    Raises:
        InputError: neither a built-in name nor a readable file.
        ManifestError: the file's fields are wrong.
    """
    built_in = BUILT_IN / f"{name}.yaml"
    if "/" not in name and built_in.exists():
        return _load(built_in)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return _load(path)
    hint = did_you_mean(name, names()) or f"built in are {', '.join(names())}; or name a YAML file"
    raise InputError(f"no scenario {name!r} ({hint})")


def _read(path: Path, kind: type[S]) -> S:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a scenario: {error}") from error
    document = parse(text, str(path))
    issues = list(document.issues.values())
    try:
        scenario = kind.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(issues + issues_of(error, document, Place(kind))) from error
    if issues:
        raise ManifestError(issues)
    return scenario


@functools.cache
def _load(path: Path) -> Scenario:
    """The file over the common stage durations."""
    scenario = _read(path, Scenario)
    stages = {**_read(COMMON, CommonStages).stages, **scenario.stages}
    return scenario.model_copy(update={"stages": stages})


def under_policy(scenario: Scenario, policy: str) -> tuple[Scenario, dict[str, float]]:
    """The scenario as another policy runs it, and the core thresholds that policy changes.

    Raises:
        InputError: the scenario has no such policy.
    """
    if policy == "ours":
        return scenario, {}
    change = scenario.policies.get(policy)
    if change is None:
        known = ", ".join(["ours", *sorted(scenario.policies)])
        raise InputError(f"scenario {scenario.name} has no policy {policy!r}; it has {known}")
    fields: dict[str, Any] = {
        "spares": scenario.spares if change.spares is None else change.spares,
        "checkpoints": change.checkpoints or scenario.checkpoints,
        "stages": {**scenario.stages, **change.stages},
    }
    if change.diagnosed:
        classes = [each.model_copy(update={"persistent": 0.0}) for each in scenario.failures.classes]
        fields["failures"] = scenario.failures.model_copy(update={"classes": classes})
    thresholds = {re.sub("([A-Z])", r"_\1", name).lower(): value for name, value in change.thresholds.items()}
    return scenario.model_copy(update=fields), thresholds
