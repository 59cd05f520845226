"""The status of a pod as a kubelet reports it, from the states of its containers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubelet.containers import now

Json = dict[str, Any]


@dataclass
class ContainerState:
    """The state of one container over its restarts. `state` has one of waiting, running, terminated."""

    name: str
    image: str
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Json = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False

    @property
    def exit_code(self) -> int | None:
        """The exit code, None while the container may still run again."""
        ended = self.state.get("terminated")
        return int(ended["exitCode"]) if ended else None

    def wait(self, reason: str, message: str = "") -> None:
        self.state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        self.ready = False

    def run(self, started_at: str) -> None:
        self.state = {"running": {"startedAt": started_at}}

    def end(self, code: int, started_at: str, message: str, identity: str) -> None:
        reason = "Completed" if code == 0 else "Error"
        ended: Json = {"exitCode": code, "reason": reason, "startedAt": started_at, "finishedAt": now()}
        ended |= {"message": message} if message else {}
        self.state = {"terminated": ended | {"containerID": identity}}
        self.ready = False

    def restart(self) -> None:
        """Move the terminated state to the last state, and count a restart."""
        if "terminated" in self.state:
            self.last = self.state
        self.restarts += 1

    def to_json(self, identity: str) -> Json:
        running = "running" in self.state
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "none",
            "containerID": identity,
            "ready": self.ready,
            "started": running,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


def may_restart(policy: str, code: int) -> bool:
    """Return whether `restartPolicy` restarts a container after an exit."""
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def phase(policy: str, init: list[ContainerState], main: list[ContainerState]) -> str:
    """Return the pod's phase: Pending, Running, Succeeded or Failed."""
    codes = [one.exit_code for one in init]
    if any(code not in {0, None} and not may_restart(_init_policy(policy), code or 0) for code in codes):
        return "Failed"
    if any(code != 0 for code in codes):
        return "Pending"
    ended = [one.exit_code for one in main]
    if all(code is not None and not may_restart(policy, code) for code in ended):
        return "Succeeded" if all(code == 0 for code in ended) else "Failed"
    begun = any("running" in one.state or "terminated" in one.state or one.last for one in main)
    return "Running" if begun else "Pending"


def _init_policy(policy: str) -> str:
    """Return the restart policy of init containers: one that succeeded is not run again."""
    return "OnFailure" if policy == "Always" else policy


@dataclass
class Conditions:
    """Pod conditions with their transition times."""

    _known: dict[str, Json] = field(default_factory=dict)

    def update(self, wanted: dict[str, tuple[bool, str]]) -> list[Json]:
        """Return the conditions. `wanted`: type -> (true, reason when false)."""
        for kind, (holds, reason) in wanted.items():
            status = "True" if holds else "False"
            old = self._known.get(kind)
            since = old["lastTransitionTime"] if old and old["status"] == status else now()
            new = {"type": kind, "status": status, "lastTransitionTime": since}
            # A null removes the reason of the previous state.
            self._known[kind] = new | {"reason": None if holds else reason}
        return list(self._known.values())


def conditions(
    phase_now: str, init: list[ContainerState], main: list[ContainerState]
) -> dict[str, tuple[bool, str]]:
    """Return the current value of each condition."""
    initialized = all(one.exit_code == 0 for one in init)
    ready = all(one.ready for one in main)
    over = phase_now in {"Succeeded", "Failed"}
    why = "PodCompleted" if phase_now == "Succeeded" else "PodFailed" if over else "ContainersNotReady"
    return {
        "PodReadyToStartContainers": (not over, ""),
        "Initialized": (initialized or over, "ContainersNotInitialized"),
        "ContainersReady": (ready and initialized, why),
        "Ready": (ready and initialized, why),
    }
