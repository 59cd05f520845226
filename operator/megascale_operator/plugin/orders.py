"""Orders to a driver, through an annotation, and checks of nodes."""

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

_ANSWER_S: Final = 60.0


async def order(access: Access, job: str, command: str, node: str, reason: str) -> str:
    """Give an order and wait for the driver's answer; returns what it said.

    Raises:
        InputError: the driver refuses, or the job has ended.
        UnreachableError: it does not answer within a minute.
    """
    found = await access.job(job)
    name = str(found["metadata"]["name"])
    _check_goes_on(found)
    identity = secrets.token_hex(6)
    text = {"id": identity, "command": command, "node": node, "reason": reason, "by": getpass.getuser()}
    patch = {"metadata": {"annotations": {names.COMMAND: json.dumps(text)}}}
    await access.api.patch(TRAINING_JOBS, name, patch, access.namespace)
    try:
        async with asyncio.timeout(_ANSWER_S):
            answer = await _answer(access, name, identity)
    except TimeoutError as error:
        raise UnreachableError(
            f"the driver of {name} did not answer within {_ANSWER_S:g} s; the order stands until it does"
        ) from error
    if not answer.get("ok"):
        raise InputError(str(answer.get("message")))
    return str(answer.get("message"))


async def _answer(access: Access, name: str, identity: str) -> Obj:
    async for job in follow(access.api, TRAINING_JOBS, name, access.namespace):
        if job is None:
            raise InputError(f"the TrainingJob {name} was deleted meanwhile")
        driver = (job.get("status") or {}).get("driver") or {}
        answer: Obj = driver.get("lastCommand") or {}
        if answer.get("id") == identity:
            return answer
        _check_goes_on(job)
    raise AssertionError("following an object never ends")


def _check_goes_on(job: Obj) -> None:
    """Raises: InputError: the job has no driver any more."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            name = job["metadata"]["name"]
            raise InputError(
                f"the TrainingJob {name} has ended ({condition['type']}): it has no driver to ask"
            )


async def check(access: Access, nodes: list[str], timeout_s: float) -> dict[str, Any]:
    """Have the operator check nodes; returns the NodeCheck's status.

    Raises:
        InputError: the API server does not take the check.
        UnreachableError: it is not over in `timeout_s`.
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
            async for found in follow(access.api, NODE_CHECKS, name, ""):
                status = (found or {}).get("status") or {}
                if status.get("state") == "Completed":
                    return {"check": name, **status}
    except TimeoutError as error:
        raise UnreachableError(
            f"NodeCheck {name} is not over after {timeout_s:g} s; kubectl get nc {name}"
        ) from error
    raise AssertionError("following an object never ends")
