"""The informers of all resources that the operator watches."""

from __future__ import annotations

from typing import Any

from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.informer import Informer, ObjectKey
from megascale_operator.kube.resources import (
    CONFIG_MAPS,
    NODE_CHECKS,
    NODES,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    TRAINING_JOBS,
)
from megascale_operator.reconcile import names
from megascale_operator.reconcile.records import (
    CheckRecord,
    JobRecord,
    NodeRecord,
    OwnedObject,
    PodRecord,
    check_record,
    job_record,
    node_record,
    owned_object,
    pod_record,
)


class Informers:
    """Caches of jobs, checks, pods, nodes and the objects that jobs own.

    The owner key of a job's objects is (namespace, job); that of a check's pods is ("", check).
    """

    def __init__(self, api: KubeApi, clock: Clock) -> None:
        def owner_of(record: PodRecord | OwnedObject) -> ObjectKey | None:
            if isinstance(record, PodRecord) and record.owner_check:
                return "", record.owner_check
            return (record.namespace, record.job) if record.job else None

        self.jobs: Informer[JobRecord] = Informer(api, TRAINING_JOBS, job_record, clock)
        self.checks: Informer[CheckRecord] = Informer(api, NODE_CHECKS, check_record, clock)
        self.pods: Informer[PodRecord] = Informer(
            api, PODS, pod_record, clock, selector=names.SELECTOR, owner=owner_of
        )
        self.nodes: Informer[NodeRecord] = Informer(api, NODES, node_record, clock)
        self.maps, *others = (
            Informer(api, resource, owned_object, clock, selector=names.SELECTOR, owner=owner_of)
            for resource in (CONFIG_MAPS, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS)
        )
        self.owned: list[Informer[OwnedObject]] = [self.maps, *others]

    @property
    def all(self) -> list[Informer[Any]]:
        """Every informer."""
        return [self.jobs, self.checks, self.pods, self.nodes, *self.owned]
