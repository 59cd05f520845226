"""Carries out the core's effects in the simulated world, and answers them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.codec import Json
from megascale.sim.cluster import Cluster
from megascale.sim.machines import Machine
from megascale.sim.training import Run, Workload

_FEW: Final = 8
_IN_LOG: Final = "for people: the event log has it"
_BY_CORE: Final = "the core's own timer ends the wait"
_IN_RECORD: Final = "the job record has it; nothing in the simulated world depends on it"

UNUSED: Final[Mapping[type, Mapping[str, str]]] = {
    fx.Launch: {
        "reason": _IN_LOG,
        "lineage": "the simulated storage keeps every commit; which of them counts is the core's decision",
        "revision": "simulated ranks run no program",
        "tier": "loading takes as long from memory as from storage",
    },
    fx.Kill: {"reason": _IN_LOG},
    fx.CollectEvidence: {"reason": _IN_LOG, "deadline_s": _BY_CORE, "attempt": "agents report what runs now"},
    fx.Probe: {"reason": _IN_LOG, "deadline_s": "simulated probes do not hang"},
    fx.CheckNodes: {"reason": _IN_LOG, "deadline_s": _BY_CORE},
    fx.SaveNow: {"reason": _IN_LOG, "deadline_s": _BY_CORE},
    fx.Acquire: {"reason": _IN_LOG},
    fx.Release: {"reason": _IN_LOG},
    fx.RestartSlot: {"reason": _IN_LOG},
    fx.Exclude: dict.fromkeys(("reason", "node", "incident"), _IN_RECORD),
    fx.RequestQuarantine: dict.fromkeys(("reason", "node", "incident"), "simulated fleets have one job"),
    fx.Page: dict.fromkeys(("reason", "incident"), "nobody is there to be paged"),
    fx.Finish: dict.fromkeys(("reason", "state"), _IN_RECORD),
}
"""Effect -> field that changes nothing in the simulated world -> why; compared with what does by a test."""


class PerformingDriver(Protocol):
    """The driver life that an effect is performed for, and answered to."""

    cluster: Cluster
    term: int
    alive: bool

    def feed(self, event: ev.Event) -> None:
        """Hand an event to the core at once."""

    def later(self, stage: str, event: ev.Event) -> None:
        """Hand it over after the delay of this name."""

    def done(self, effect: fx.Effect, stage: str = "answer") -> None:
        """Answer EffectDone after the delay of this name."""

    def scan_storage(self) -> None:
        """Feed the commits that nobody reported."""


@dataclass(slots=True)
class Gathering:
    """An effect that waits for an answer from each of several nodes."""

    waiting: set[str]
    failed: dict[str, str] = field(default_factory=dict)


def perform(driver: PerformingDriver, effect: fx.Effect) -> None:
    """Begin `effect`; its answer comes later through `driver.feed`."""
    _PERFORMERS[type(effect)](driver, effect)


def _launch(driver: PerformingDriver, effect: fx.Launch) -> None:
    cluster = driver.cluster
    if effect.attempt not in cluster.runs:
        cluster.runs[effect.attempt] = Run(
            effect.attempt,
            effect.nodes,
            effect.resume,
            work=_workload(cluster.work, effect.save_every_steps),
            queue=cluster.queue,
            delays=cluster.delays,
            storage=cluster.storage,
            watcher=cluster,
        )
    _Launching(driver, effect, cluster.runs[effect.attempt]).order()


def _workload(work: Workload, save_every_steps: int) -> Workload:
    return replace(work, every_steps=save_every_steps) if save_every_steps else work


class _Launching:
    """A Launch under way: every agent accepts or refuses it on receipt, and forks its ranks later."""

    def __init__(self, driver: PerformingDriver, effect: fx.Launch, run: Run) -> None:
        self._driver, self._effect, self._run = driver, effect, run
        self._waiting = set(effect.nodes)
        self._answered = False

    def order(self) -> None:
        cluster, effect = self._driver.cluster, self._effect
        before = cluster.runs.get(effect.attempt - 1)
        changed = before is not None and set(before.nodes) != set(effect.nodes)
        self._extra_s = cluster.delays.sample("promote") if changed else 0.0
        self._shared_s = cluster.delays.sample("fork") + self._extra_s
        cluster.queue.after(cluster.launch_timeout_s, self._give_up)
        _to_each(self._driver, effect.nodes, "", self._receive, self._receive_all)

    def _receive(self, machine: Machine) -> None:
        if self._accepts(machine):
            cluster = self._driver.cluster
            delay = self._extra_s + cluster.delays.sample("fork")
            cluster.queue.after(delay, lambda: self._fork([machine]))

    def _receive_all(self, machines: list[Machine]) -> None:
        accepted = [machine for machine in machines if self._accepts(machine)]
        self._driver.cluster.queue.after(self._shared_s, lambda: self._fork(accepted))

    def _accepts(self, machine: Machine) -> bool:
        refusal = self._driver.cluster.accept(machine, (self._driver.term, self._run.attempt))
        if refusal:
            self._fail(machine.name, refusal)
        return not refusal

    def _fork(self, machines: list[Machine]) -> None:
        """Each of them starts its ranks."""
        cluster, token, run = self._driver.cluster, (self._driver.term, self._run.attempt), self._run
        refused = ""
        for machine in machines:
            refusal = cluster.fork(machine, token, run)
            self._waiting.discard(machine.name)
            if refusal:
                refused = refusal
                self._fail(machine.name, refusal)
        if not refused and not self._waiting and not self._answered:
            self._answered = True
            self._driver.done(self._effect)

    def _fail(self, node: str, reason: str) -> None:
        if not self._answered:
            self._answered = True
            self._driver.feed(ev.EffectFailed(self._effect.effect_id, reason, (node,)))

    def _give_up(self) -> None:
        if self._waiting and not self._answered:
            self._answered = True
            late = tuple(sorted(self._waiting))
            self._driver.feed(ev.EffectFailed(self._effect.effect_id, "no answer to Launch", late))


def _kill(driver: PerformingDriver, effect: fx.Kill) -> None:
    cluster = driver.cluster
    gathering = Gathering(set(effect.nodes))

    def answer() -> None:
        if driver.alive:
            driver.scan_storage()
            detail: dict[str, Json] = {"unreaped": list(gathering.failed)} if gathering.failed else {}
            driver.feed(ev.EffectDone(effect.effect_id, detail))

    def reap(machines: list[Machine]) -> None:
        for machine in machines:
            if not cluster.kill(machine, driver.term, effect.attempt):
                gathering.failed[machine.name] = "stuck"
            gathering.waiting.discard(machine.name)
        if not gathering.waiting:
            wait_s = effect.deadline_s if gathering.failed else cluster.delays.sample("reap")
            cluster.queue.after(wait_s, answer)

    if effect.nodes:
        _to_each(driver, effect.nodes, "kill", lambda machine: reap([machine]), reap)
    else:
        cluster.queue.after(cluster.delays.sample("reap"), answer)


def _to_each(
    driver: PerformingDriver,
    nodes: tuple[str, ...],
    stage: str,
    action: Callable[[Machine], None],
    together: Callable[[list[Machine]], None],
) -> None:
    """The same command to many agents, one by one; `together` when the network loses nothing."""
    cluster = driver.cluster
    machines = [cluster.machines[name] for name in nodes]
    if not _in_step(driver, len(nodes)):
        for machine in machines:
            delay = cluster.delays.sample(stage)
            send = functools.partial(cluster.network.command, machine, action)
            cluster.queue.after(delay, send)
        return

    def all_at_once() -> None:
        if reached := [machine for machine in machines if machine.reachable]:
            together(reached)

    cluster.queue.after(cluster.delays.sample(stage), all_at_once)


def _in_step(driver: PerformingDriver, nodes: int) -> bool:
    """Whether many agents may be treated as one: nothing is lost on the way to any of them."""
    return not driver.cluster.network.loss.drop and nodes > _FEW


def _collect(driver: PerformingDriver, effect: fx.CollectEvidence) -> None:
    cluster = driver.cluster

    def answer(machine: Machine) -> None:
        found = ev.Evidence(effect.effect_id, machine.name, cluster.evidence(machine))
        cluster.network.send(machine, found)

    def answers(machines: list[Machine]) -> None:
        for machine in machines:
            answer(machine)

    _to_each(driver, effect.nodes, "evidence", answer, answers)
    driver.done(effect, "evidence")


def _probe(driver: PerformingDriver, effect: fx.Probe) -> None:
    machine = driver.cluster.machines.get(effect.node)
    known = machine is not None and machine.linked
    healthy: bool | None = None
    detail = "does not answer"
    if machine is not None and known:
        healthy = machine.power and bool(machine.incarnation)
        detail = "answers" if healthy else detail
        if machine.slowdown > 1.0:
            healthy, detail = False, f"{machine.slowdown - 1.0:.0%} slower than the reference"
    driver.later("probe", ev.ProbeResult(effect.effect_id, effect.node, healthy, detail))
    driver.done(effect, "probe")


def _check(driver: PerformingDriver, effect: fx.CheckNodes) -> None:
    """A check finds most of the nodes that compute wrong numbers, and accuses no other."""
    cluster = driver.cluster

    def answer() -> None:
        asked = [cluster.machines[name] for name in effect.nodes]
        wrong = [m for m in asked if m.defect in cluster.wrong_numbers and m.reachable]
        found: dict[str, Json] = {
            machine.name: "a product differs from its reference"
            for machine in wrong
            if cluster.delays.rng.random() < cluster.check_recall
        }
        driver.feed(ev.EffectDone(effect.effect_id, {"convicted": found}))

    cluster.queue.after(cluster.delays.sample("nodeCheck"), answer)


def _save(driver: PerformingDriver, effect: fx.SaveNow) -> None:
    run = driver.cluster.runs.get(effect.attempt)
    if run is not None:
        delay = driver.cluster.delays.sample("network")
        driver.cluster.queue.after(delay, lambda: run.request_save(then_stop=effect.then_stop))
    driver.done(effect)


def _acquire(driver: PerformingDriver, effect: fx.Acquire) -> None:
    def ask() -> None:
        if not driver.alive:
            return
        refusal = driver.cluster.fleet.acquire(effect.count, effect.avoid)
        if refusal:
            driver.later("answer", ev.FleetRefused(effect.effect_id, refusal))
        else:
            driver.done(effect)

    driver.cluster.queue.after(driver.cluster.delays.sample("acquire"), ask)


def _release(driver: PerformingDriver, effect: fx.Release) -> None:
    machine = driver.cluster.machines.get(effect.node)
    if machine is not None:
        driver.cluster.release(machine)
    driver.done(effect)


def _restart_slot(driver: PerformingDriver, effect: fx.RestartSlot) -> None:
    machine = driver.cluster.machines.get(effect.node)
    if machine is not None and machine.held:
        machine.stop_agent()
        delay = driver.cluster.delays.sample("boot")
        driver.cluster.queue.after(delay, functools.partial(driver.cluster.boot, machine))
    driver.done(effect)


def _note(driver: PerformingDriver, effect: fx.Effect) -> None:
    driver.done(effect)


def _finish(driver: PerformingDriver, effect: fx.Finish) -> None:
    for machine in driver.cluster.machines.values():
        if machine.held:
            driver.cluster.release(machine)
    driver.done(effect)


_PERFORMERS: Final[dict[type, Callable[[Any, Any], None]]] = {
    fx.Launch: _launch,
    fx.Kill: _kill,
    fx.CollectEvidence: _collect,
    fx.Probe: _probe,
    fx.CheckNodes: _check,
    fx.SaveNow: _save,
    fx.Acquire: _acquire,
    fx.Release: _release,
    fx.RestartSlot: _restart_slot,
    fx.Exclude: _note,
    fx.RequestQuarantine: _note,
    fx.Page: _note,
    fx.Finish: _finish,
}
