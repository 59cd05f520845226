"""Commands to a driver through an annotation of the TrainingJob, and node checks."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
from typing import Any, Final

from megascale.errors import InputError, UnreachableError
from megascale_operator.driver.follow import follow
from megascale_operator.kube.errors import RefusedError
from megascale_operator.kube.resources import NODE_CHECKS, TRAINING_JOBS, Obj
from megascale_operator.plugin.access import Access
from megascale_operator.reconcile import names

_RESPONSE_TIMEOUT_S: Final = 60.0


async def send_command(access: Access, job: str, command: str, node: str, reason: str) -> str:
    """Send a command and wait for the driver's result; return its message.

    Raises:
        InputError: the driver refused the command, or the job has ended.
        UnreachableError: the driver did not respond within a minute.
    """
    training_job = await access.job(job)
    name = str(training_job["metadata"]["name"])
    _check_not_ended(training_job)
    identity = secrets.token_hex(6)
    text = {"id": identity, "command": command, "node": node, "reason": reason, "by": getpass.getuser()}
    patch = {"metadata": {"annotations": {names.COMMAND: json.dumps(text)}}}
    await access.api.patch(TRAINING_JOBS, name, patch, access.namespace)
    try:
        async with asyncio.timeout(_RESPONSE_TIMEOUT_S):
            result = await _wait_for_result(access, name, identity)
    except TimeoutError as error:
        raise UnreachableError(
            f"the driver of {name} did not respond within {_RESPONSE_TIMEOUT_S:g} s; it will execute the "
            "command when it is back"
        ) from error
    if not result.get("ok"):
        raise InputError(str(result.get("message")))
    return str(result.get("message"))


async def _wait_for_result(access: Access, name: str, identity: str) -> Obj:
    async for job in follow(access.api, TRAINING_JOBS, name, access.namespace):
        if job is None:
            raise InputError(f"the TrainingJob {name} was deleted in the meantime")
        driver = (job.get("status") or {}).get("driver") or {}
        result: Obj = driver.get("lastCommand") or {}
        if result.get("id") == identity:
            return result
        _check_not_ended(job)
    raise AssertionError("following an object never ends")


def _check_not_ended(job: Obj) -> None:
    """Check that the job still has a driver.

    Raises:
        InputError: the job has ended.
    """
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            name = job["metadata"]["name"]
            raise InputError(f"the TrainingJob {name} has ended ({condition['type']}) and has no driver")


async def check(access: Access, nodes: list[str], timeout_s: float) -> dict[str, Any]:
    """Create a NodeCheck, wait until it completes, and return its status.

    Raises:
        InputError: the API server refused the NodeCheck.
        UnreachableError: it did not complete within `timeout_s` seconds.
    """
    name = f"kubectl-{secrets.token_hex(4)}"
    body = {
        "apiVersion": NODE_CHECKS.api_version,
        "kind": NODE_CHECKS.kind,
        "metadata": {"name": name},
        "spec": {"nodes": nodes, "ttlSecondsAfterFinished": 3600},
    }
    try:
        await access.api.create(NODE_CHECKS, body)
    except RefusedError as error:
        raise InputError(str(error)) from error
    try:
        async with asyncio.timeout(timeout_s):
            async for node_check in follow(access.api, NODE_CHECKS, name, ""):
                status = (node_check or {}).get("status") or {}
                if status.get("state") == "Completed":
                    return {"check": name, **status}
    except TimeoutError as error:
        raise UnreachableError(
            f"NodeCheck {name} did not complete within {timeout_s:g} s; see kubectl get nc {name}"
        ) from error
    raise AssertionError("following an object never ends")
