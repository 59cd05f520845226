"""The job controller: what it keeps between reconciles, with an API server in memory."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from kube_world import START, job_object
from megascale_operator.informers import Informers
from megascale_operator.jobs import JobController
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import NotFoundError
from megascale_operator.kube.resources import CONFIG_MAPS, TRAINING_JOBS, Obj, Resource
from megascale_operator.metrics import Metrics
from megascale_operator.quarantine.breaker import Limits
from megascale_operator.quarantine.controller import QuarantineController
from megascale_operator.reconcile import names
from megascale_operator.reconcile.observed import Settings
from megascale_operator.reconcile.plan import Apply, Create, Patch, Plan

KEY = ("team", "q")


@dataclass
class Site:
    """A controller whose plans are kept, and whose status writes are absorbed as the API server would."""

    now: float = START
    plans: list[Plan] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    maps: dict[str, Obj] = field(default_factory=dict)
    job: Obj = field(default_factory=job_object)
    mode: str = "Enforce"

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start an operator that remembers nothing."""
        site = cast(Any, self)
        clock = Clock(lambda: self.now, lambda: self.now)
        self.informers = Informers(site, clock)
        settings = Settings("image:1", mode=self.mode)
        self.quarantine = QuarantineController(
            site, self.informers.nodes, site, Metrics(), clock, mode=self.mode, limits=Limits()
        )
        self.jobs = JobController(site, self.informers, site, site, self.quarantine, settings, clock)
        self.stored(TRAINING_JOBS, self.job)

    def stored(self, resource: Resource, obj: Obj) -> None:
        """Let the informers see an object."""
        for informer in self.informers.all:
            if informer.resource is resource:
                informer.absorb(copy.deepcopy(obj))

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Obj:
        if resource is CONFIG_MAPS and name in self.maps:
            return self.maps[name]
        raise NotFoundError(f"{namespace}/{name}", 404)

    async def record(self, _obj: Obj, kind: str, reason: str, _message: str) -> None:
        self.events.append((kind, reason))

    async def apply(self, plan: Plan) -> None:
        self.plans.append(plan)
        for action in plan.actions:
            match action:
                case Apply(resource, body, "status") if resource is TRAINING_JOBS:
                    driver = (self.job.get("status") or {}).get("driver")
                    kept = {"driver": driver} if driver else {}
                    self.job["status"] = copy.deepcopy(body["status"]) | kept
                case Apply(resource, body, _) if resource is CONFIG_MAPS:
                    self.maps[body["metadata"]["name"]] = body
                case Patch(resource, _, _, patch) if resource is TRAINING_JOBS:
                    self.job["metadata"] |= {"finalizers": patch["metadata"].get("finalizers")}

    def edit(self, **spec: Any) -> None:
        self.job["spec"] |= spec
        self.job["metadata"]["generation"] += 1

    async def reconcile(self) -> tuple[list[str], float | None]:
        """Reconcile the job; return the names of the objects created, and when to look again."""
        self.now += 5
        self.stored(TRAINING_JOBS, self.job)
        requeue_s = await self.jobs.reconcile(KEY)
        made = [one.body["metadata"]["name"] for one in self.plans[-1].actions if isinstance(one, Create)]
        return made, requeue_s

    def condition(self, kind: str) -> Obj:
        return next(one for one in self.job["status"]["conditions"] if one["type"] == kind)


def played(main: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await main(Site())

    asyncio.run(run())


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_whose_newest_spec_is_invalid_is_looked_after_with_the_last_valid_one(restarted: bool) -> None:
    """A pattern that is no regular expression: the CRD has no rule for it."""

    async def main(site: Site) -> None:
        await site.reconcile()
        assert site.condition("SpecValid")["status"] == "True"
        wanted = ["q-0-0", "q-1-0", "q-2-0", "q-driver-0"]
        broken = {"match": {"pattern": "("}, "action": "page"}
        site.edit(nodes=9, logRules=[broken])
        if restarted:
            site.start()
        made, requeue_s = await site.reconcile()
        assert [name for name in sorted(made) if name in wanted] == wanted, "lost pods are made again"
        assert requeue_s is not None
        condition = site.condition("SpecValid")
        assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
        assert "logRules" in condition["message"]
        assert condition["observedGeneration"] == 2
        assert site.job["status"]["observedGeneration"] == 1
        assert json.loads(site.maps[names.job_map("q")]["data"]["job.yaml"])["spec"]["nodes"] == 2
        await site.reconcile()
        assert site.events.count(("Warning", "InvalidSpec")) == 1
        site.edit(logRules=[], nodes=2)
        await site.reconcile()
        assert site.condition("SpecValid")["status"] == "True"
        assert site.job["status"]["observedGeneration"] == 3

    played(main)


def test_the_deadline_of_a_job_with_an_invalid_spec_is_kept() -> None:
    async def main(site: Site) -> None:
        site.edit(activeDeadlineSeconds=60)
        await site.reconcile()
        site.edit(logRules=[{"match": {"pattern": "("}, "action": "page"}])
        site.now += 100
        await site.reconcile()
        assert ("Warning", "DeadlineExceeded") in site.events

    played(main)


def test_a_job_that_never_had_a_valid_spec_says_so_in_its_conditions() -> None:
    async def main(site: Site) -> None:
        site.edit(logRules=[{"match": {"pattern": "("}, "action": "page"}])
        site.maps[names.job_map("q")] = {
            "metadata": {"ownerReferences": [{"uid": "an earlier job"}]},
            "data": {"job.yaml": json.dumps({"spec": job_object()["spec"]})},
        }
        for _ in range(2):
            made, requeue_s = await site.reconcile()
            assert (made, requeue_s) == ([], 30.0)
        assert site.condition("SpecValid")["reason"] == "InvalidSpec"
        assert site.job["status"]["state"] == "InvalidSpec"
        assert site.events == [("Warning", "InvalidSpec")]

    played(main)
