"""Enumerations that events, effects, the job record and the status share.

Each is a `StrEnum`: in Python a member, in JSON and on the wire its text. A text that a newer version of
the program wrote, and that is none of these, is kept as it is (`codec.is_known`).
"""

from __future__ import annotations

import enum


class Cause(enum.StrEnum):
    """What an incident was caused by. SLOW is a job whose throughput decays without a node at fault."""

    CRASH = "crash"
    USER_CODE = "user_code"
    HANG = "hang"
    NODE_LOST = "node_lost"
    HARDWARE = "hardware"
    STRAGGLER = "straggler"
    NUMERICS = "numerics"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    LAUNCH_FAILED = "launch_failed"
    MANUAL = "manual"
    PLANNED = "planned"
    SLOW = "slow"


class Action(enum.StrEnum):
    """What is done about an incident."""

    RESTART_IN_PLACE = "restart_in_place"
    RESTART_CONTAINER = "restart_container"
    REPLACE_NODE = "replace_node"
    ROLL_BACK = "roll_back"
    REVERT_SPEC = "revert_spec"
    SHRINK = "shrink"
    FAIL_JOB = "fail_job"
    NONE = "none"


class Milestone(enum.StrEnum):
    """What an incident passes on its way from the fault to normal speed, in this order."""

    FAULT = "fault"
    DETECTED = "detected"
    DECIDED = "decided"
    STOPPED = "stopped"
    LAUNCHED = "launched"
    GROUPS = "groups"
    LOADED = "loaded"
    FIRST_STEP = "firstStep"
    BACK_TO_SPEED = "backToSpeed"


class Source(enum.StrEnum):
    """How it is known when a milestone was passed."""

    OBSERVED = "observed"
    ESTIMATED = "estimated"
    INJECTED = "injected"


class Timer(enum.StrEnum):
    """Names of the core's deadlines."""

    STARTUP = "startup"
    KILL = "kill"
    HANG = "hang"
    EVIDENCE = "evidence"
    FLAP = "flap"
    SAVE = "save"
    LEAVING = "leaving"
    SHRINK = "shrink"
    ACQUIRE_RETRY = "acquireRetry"
    ACQUIRED = "acquired"
    RECONNECT = "reconnect"
    CHECK = "check"
    APPLY_SPEC = "applySpec"
    GROW = "grow"
    BACKOFF = "backoff"


class PlanKind(enum.StrEnum):
    """What follows once the ranks of an attempt are stopped."""

    RELAUNCH = "relaunch"
    SUSPEND = "suspend"
    FINISH = "finish"


class FinishState(enum.StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class Detector(enum.StrEnum):
    """What shadow mode can hold back; exits of ranks are always acted on."""

    SILENCE = "silence"
    HANG = "hang"
    HARDWARE = "hardware"
    STRAGGLER = "straggler"
    NUMERICS = "numerics"


class RankPhase(enum.StrEnum):
    """What a rank is doing, by its own account. SAVING_AGAIN: the last save failed and is tried again."""

    STARTUP = "startup"
    COMPILE = "compile"
    DATA = "data"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    IDLE = "idle"
    SAVING_AGAIN = "saving_again"


class Tier(enum.StrEnum):
    """Where the state that an attempt resumes from is kept: shared storage, or every rank's own node."""

    DURABLE = "durable"
    MEMORY = "memory"


class Command(enum.StrEnum):
    """What a person can ask of a job. REOPEN starts an ended one again."""

    EVICT = "evict"
    RELEASE = "release"
    SAVE = "save"
    STOP = "stop"
    SUSPEND = "suspend"
    RESUME = "resume"
    REOPEN = "reopen"
