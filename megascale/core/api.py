"""What shells and the operator use of the core; everything else in `megascale.core` is its own affair."""

from megascale.core.contract import effects, events
from megascale.core.contract.bounded_json import parse_json
from megascale.core.contract.codec import Json
from megascale.core.contract.effects import Effect
from megascale.core.contract.events import Event
from megascale.core.contract.policy import MACHINE_CLASSES, Policy
from megascale.core.contract.vocabulary import (
    Action,
    Cause,
    Command,
    Detector,
    FinishState,
    Milestone,
    RankPhase,
    Source,
    Tier,
)
from megascale.core.machine import CORE_VERSION, Core
from megascale.core.state.record import Incident, JobRecord, JobState, NodeStatus

__all__ = [
    "CORE_VERSION",
    "MACHINE_CLASSES",
    "Action",
    "Cause",
    "Command",
    "Core",
    "Detector",
    "Effect",
    "Event",
    "FinishState",
    "Incident",
    "JobRecord",
    "JobState",
    "Json",
    "Milestone",
    "NodeStatus",
    "Policy",
    "RankPhase",
    "Source",
    "Tier",
    "effects",
    "events",
    "parse_json",
]
