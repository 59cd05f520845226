"""Scenarios as data: a fleet, how it fails, how long each stage of a recovery takes, and who says so."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from megascale.core.contract.policy import Policy
from megascale.errors import InputError, ManifestError, ManifestIssue
from megascale.job.base import Section, did_you_mean
from megascale.job.describe import Place
from megascale.job.document import dotted, parse
from megascale.job.issues import issues_of
from megascale.sim.delays import Distribution

BUILT_IN: Final = Path(__file__).parent / "scenarios"
COMMON: Final = BUILT_IN / "_durations.yaml"
THRESHOLDS: Final = frozenset(
    to_camel(each.name) for each in dataclasses.fields(Policy) if each.type in ("float", "int", "bool")
)
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

    `persistent`: share of these faults that show again on the same node until it is replaced;
    `sign`, `xid`, `line`: what the node's inspection finds; `errorType`, `text`: a rank's exit report.
    """

    name: str
    """What the class is called in tables."""
    weight: Positive
    """Its share of the faults, relative to the other weights."""
    symptom: Literal["crash", "hang", "unclearHang", "nodeDown", "flap", "userError", "nan", "drain"]
    """What the job sees of it."""
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
    """Faults per node and day, all classes together."""
    source: str
    """Where the rate comes from."""
    mix_source: str
    """Where the weights of the classes come from."""
    classes: list[FaultClass]
    """The failure mix."""
    recurs: Duration
    """How long after a restart a persistent fault shows again."""
    check_recall: Annotated[float, Field(ge=0, le=1)] = 0.7
    false_silence_per_node_hour: Annotated[float, Field(ge=0)] = 0.0
    """Sound nodes taken for silent."""
    false_hang_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Sound steps that take long enough to be taken for a hang."""
    false_source: str = ""
    """Where the two rates of false alarms come from."""


class Checkpoints(Section):
    """Durable checkpoints, and snapshots in the memory of other nodes (`memoryEverySteps` 0 = none)."""

    every_seconds: Positive
    """Time between durable checkpoints."""
    stall_seconds: Annotated[float, Field(ge=0)]
    """How long one holds up training."""
    memory_every_steps: Annotated[int, Field(ge=0)] = 0
    memory_stall_seconds: Annotated[float, Field(ge=0)] = 0.0
    basis: Basis
    """How its durations are known."""
    source: str
    """Where they come from."""


class PolicyChange(Section):
    """What another way of running the same job does differently.

    `diagnosed`: the node at fault is found within the durations given, so no fault comes back.
    """

    title: str
    spares: Annotated[int, Field(ge=0)] | None = None
    checkpoints: Checkpoints | None = None
    diagnosed: bool = False
    durations: dict[str, Duration] = Field(default_factory=dict)
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
    """What `megascale simulate` calls it."""
    title: str
    """One line for tables and pictures."""
    gpus: Annotated[int, Field(ge=1)]
    """GPUs that train, spares not counted."""
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    days: Positive
    """How long the campaign lasts."""
    spares: Annotated[int, Field(ge=0)]
    """Idle nodes kept ready."""
    fleet_nodes: Annotated[int, Field(ge=0)] = 0
    """Further free nodes that can be asked for."""
    step_seconds: Positive
    """Time of a step without trouble."""
    step_source: str
    """Where the step time comes from."""
    failures: Failures
    """How often nodes fail, and of what."""
    checkpoints: Checkpoints
    """When state is saved, and what that costs."""
    durations: dict[str, Duration]
    """Durations that differ from the common ones, by name of the stage."""
    policies: dict[str, PolicyChange] = Field(default_factory=dict)
    """Other ways of running the same job, by name; `ours` is always there."""
    figures: list[Figure] = Field(default_factory=list)
    """Published figures to compare with."""
    calibrated: str = ""
    """The one parameter that was fitted, and to what."""
    assumptions: list[str] = Field(default_factory=list)
    """What had to be assumed, in sentences."""
    goal: str = ""
    """The result this scenario is to show."""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


class CommonDurations(Section):
    """Durations that every scenario starts from."""

    durations: dict[str, Duration]


S = TypeVar("S", bound=Section)
_Named = tuple[tuple[str | int, ...], str, Collection[str]]  # where, the name, names that are known


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


def _read(file: Path, kind: type[S], names: Callable[[S], Iterable[_Named]] = lambda _: ()) -> S:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a scenario: {error}") from error
    document = parse(text, str(file))
    issues = list(document.issues.values())
    try:
        scenario = kind.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(issues + issues_of(error, document, Place(kind))) from error
    for path, name, known in names(scenario):
        if name not in known:
            hint = did_you_mean(name, known) or f"known are {', '.join(sorted(known))}"
            message = f'unknown name "{name}"'
            issues.append(ManifestIssue(dotted(path), message, document.file, document.line_of(path), hint))
    if issues:
        raise ManifestError(issues)
    return scenario


@functools.cache
def _load(path: Path) -> Scenario:
    """The file over the common durations."""
    common = _read(COMMON, CommonDurations).durations

    def names(scenario: Scenario) -> Iterator[_Named]:
        yield from ((("durations", name), name, common) for name in scenario.durations)
        for policy, change in scenario.policies.items():
            at = ("policies", policy)
            yield from (((*at, "durations", name), name, common) for name in change.durations)
            yield from (((*at, "thresholds", name), name, THRESHOLDS) for name in change.thresholds)
        for index, figure in enumerate(scenario.figures):
            yield ("figures", index, "policy"), figure.policy, {"ours", *scenario.policies}

    scenario = _read(path, Scenario, names)
    return scenario.model_copy(update={"durations": common | scenario.durations})


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
        "durations": {**scenario.durations, **change.durations},
    }
    if change.diagnosed:
        classes = [each.model_copy(update={"persistent": 0.0}) for each in scenario.failures.classes]
        fields["failures"] = scenario.failures.model_copy(update={"classes": classes})
    thresholds = {re.sub("([A-Z])", r"_\1", name).lower(): value for name, value in change.thresholds.items()}
    return scenario.model_copy(update=fields), thresholds
