"""Commands to a driver through an annotation of the TrainingJob, and node checks."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
from typing import Any, Final

from megascale.errors import InputError, UnreachableError
from megascale_operator.driver.follow import follow
from megascale_operator.kube.errors import ConflictError, RefusedError
from megascale_operator.kube.resources import NODE_CHECKS, TRAINING_JOBS, Obj
from megascale_operator.plugin.access import Access
from megascale_operator.reconcile import names
from megascale_operator.user_command import MAX_LENGTH, unanswered_command

_RESPONSE_TIMEOUT_S: Final = 60.0
_WRITE_TRIES: Final = 10


async def send_command(access: Access, job: str, command: str, node: str, reason: str) -> str:
    """Send a command and wait for the driver's result; return its message.

    Raises:
        InputError: the driver refused the command, the job has ended, another command is not answered yet,
            or the command is too long.
        UnreachableError: the driver did not respond within a minute.
    """
    identity = secrets.token_hex(6)
    order = {"id": identity, "command": command, "node": node, "reason": reason, "by": getpass.getuser()}
    text = json.dumps(order)
    if len(text) > MAX_LENGTH:
        raise InputError(
            f"--reason has {len(reason)} characters, which makes the command {len(text)} long as JSON;"
            f" expected at most {MAX_LENGTH}: give a shorter reason"
        )
    name = await _write(access, job, text)
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


async def _write(access: Access, job: str, text: str) -> str:
    """Write the annotation unless it holds a command that is not answered; return the job's name.

    Raises:
        InputError: the job has ended, or another command is not answered yet.
    """
    for tries_left in reversed(range(_WRITE_TRIES)):
        found = await access.job(job)
        meta = found["metadata"]
        _check_not_ended(found)
        _check_answered(found)
        version = {"resourceVersion": meta["resourceVersion"], "annotations": {names.COMMAND: text}}
        try:
            await access.api.patch(TRAINING_JOBS, meta["name"], {"metadata": version}, access.namespace)
        except ConflictError:
            if not tries_left:
                raise
        else:
            break
    return str(meta["name"])


def _check_answered(job: Obj) -> None:
    """Check that no command would be overwritten.

    Raises:
        InputError: the driver has not answered the last command.
    """
    order = unanswered_command(job)
    if not order:
        return
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    about = f"{order.get('command')} {order.get('node') or ''}".strip()
    raise InputError(
        f"the driver of {name} has not answered the command {about!r} of {order.get('by') or 'somebody'}"
        f" (id {order['id']}) yet: send yours when it has. kubectl get tj {name} -n {namespace} -o yaml shows"
        f" the command in the annotation {names.COMMAND} and the last answer in status.driver.lastCommand;"
        f" kubectl annotate tj {name} -n {namespace} {names.COMMAND}- withdraws it"
    )


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
