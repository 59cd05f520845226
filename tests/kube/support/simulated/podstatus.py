"""Status of simulated pods, and the audience of their tokens."""

from __future__ import annotations

from typing import Any

from kubelet.containers import now

Json = dict[str, Any]


def audience(pod: Json) -> str:
    """Return the audience of the pod's projected token."""
    for volume in pod["spec"].get("volumes", ()):
        for source in volume.get("projected", {}).get("sources", ()):
            if "audience" in source.get("serviceAccountToken", {}):
                return str(source["serviceAccountToken"]["audience"])
    return ""


def status_of(pod: Json, ip: str, state: Json, restarts: int) -> Json:
    running = "running" in state
    container = pod["spec"]["containers"][0]
    shown = {"name": container["name"], "image": container["image"], "imageID": "none", "ready": running}
    shown |= {"started": running, "restartCount": restarts, "state": state, "lastState": {}}
    done = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}}
    checks = [
        {
            "name": one["name"],
            "image": one["image"],
            "imageID": "none",
            "ready": True,
            "restartCount": 0,
            "state": done,
        }
        for one in pod["spec"].get("initContainers", ())
    ]
    holds = "True" if running else "False"
    kinds = {"Initialized": "True", "ContainersReady": holds, "Ready": holds}
    conditions = [
        {"type": kind, "status": status, "lastTransitionTime": now()} for kind, status in kinds.items()
    ]
    found: Json = {
        "phase": "Running" if running else "Succeeded",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": now(),
    }
    found |= {"hostIP": ip, "containerStatuses": [shown], "conditions": conditions}
    return found | ({"initContainerStatuses": checks} if checks else {})
