"""Applies plans: steps one after the other, the actions of a step concurrently."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from megascale.errors import MegascaleError
from megascale_operator.kube.api import KubeApi, PatchKind
from megascale_operator.kube.errors import AlreadyExistsError, NotFoundError, NotLeaderError
from megascale_operator.kube.resources import PODS, Obj, Resource, namespace_of
from megascale_operator.metrics import Metrics
from megascale_operator.reconcile import names
from megascale_operator.reconcile.plan import Action, Apply, Create, Delete, DeletePods, Patch, Plan

log = logging.getLogger(__name__)

MAX_IN_FLIGHT: Final = 32
"""Concurrent requests of one plan, at most."""


class PlanApplier:
    """Sends the requests of plans.

    Args:
        absorb: per resource, called with the object in each response, so that the informer's cache has the
            write before the next reconcile.
    """

    def __init__(
        self, api: KubeApi, metrics: Metrics, absorb: Mapping[Resource, Callable[[Obj], None]]
    ) -> None:
        self._api, self._metrics, self._absorb_by_resource = api, metrics, absorb

    async def apply(self, plan: Plan) -> None:
        """Execute the plan's actions; a failed action does not stop the others, a failed `needed` step does.

        Raises:
            NotLeaderError: this process is not the leader; the remaining actions are not sent.
            MegascaleError: the first error of an action.
        """
        errors: list[MegascaleError] = []
        for step in plan.steps:
            actions = iter(step.actions)
            workers = min(MAX_IN_FLIGHT, len(step.actions))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._execute_all(actions)) for _ in range(workers)]
            failed = [error for task in tasks for error in task.result()]
            errors += failed
            if any(isinstance(error, NotLeaderError) for error in failed) or (step.needed and failed):
                break
        if errors:
            raise errors[-1] if isinstance(errors[-1], NotLeaderError) else errors[0]

    async def _execute_all(self, actions: Iterator[Action]) -> list[MegascaleError]:
        errors: list[MegascaleError] = []
        for action in actions:
            try:
                await self._execute(action)
            except NotLeaderError as error:
                return [*errors, error]
            except MegascaleError as error:
                log.warning("%s: %s", type(action).__name__, error)
                errors.append(error)
        return errors

    async def _execute(self, action: Action) -> None:
        match action:
            case Create(resource, body):
                try:
                    self._absorb_response(
                        resource, "create", await self._api.create(resource, body, namespace_of(body))
                    )
                except AlreadyExistsError:
                    return
                if resource is PODS:
                    self._metrics.pods_created.labels(body["metadata"]["labels"][names.ROLE]).inc()
            case Apply(resource, body, subresource):
                response = await self._api.apply(
                    resource, body, namespace_of(body), manager=names.OPERATOR, subresource=subresource
                )
                self._absorb_response(resource, "apply", response)
            case Patch(resource, namespace, name, patch):
                await self._patch(resource, namespace, name, patch)
            case Delete(resource, namespace, name, uid, grace_s):
                await self._api.delete(resource, name, namespace, uid=uid, grace_s=grace_s)
                self._count(resource, "delete")
            case DeletePods(namespace, selector):
                await self._api.delete_collection(PODS, namespace, selector=selector)
                self._count(PODS, "deletecollection")

    async def _patch(self, resource: Resource, namespace: str, name: str, patch: Any) -> None:  # noqa: ANN401
        kind: PatchKind = "json" if isinstance(patch, list) else "merge"
        try:
            response = await self._api.patch(resource, name, patch, namespace, kind=kind)
        except NotFoundError:
            return
        self._absorb_response(resource, "patch", response)

    def _absorb_response(self, resource: Resource, action: str, response: Obj) -> None:
        self._count(resource, action)
        absorb = self._absorb_by_resource.get(resource)
        # The response to removing the last finalizer is an object that no longer exists.
        if absorb and not _is_gone(response):
            absorb(response)

    def _count(self, resource: Resource, action: str) -> None:
        self._metrics.writes.labels(resource.plural, action).inc()


def _is_gone(obj: Obj) -> bool:
    meta = obj.get("metadata") or {}
    return bool(meta.get("deletionTimestamp")) and not meta.get("finalizers")
