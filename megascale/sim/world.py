"""A whole simulated job: cluster, network, storage, and a succession of drivers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megascale.core.contract.policy import Policy
from megascale.core.state.record import JobState
from megascale.sim.cluster import Cluster
from megascale.sim.delays import Delays, Distribution
from megascale.sim.driver import Observer, RecordStore, SimDriver
from megascale.sim.event_queue import EventQueue
from megascale.sim.heartbeats import Heartbeats
from megascale.sim.machines import Machine
from megascale.sim.network import Loss, Network
from megascale.sim.storage import Storage
from megascale.sim.summary import Summary
from megascale.sim.training import Workload

EPOCH_S = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What a simulated job is made of.

    Attributes:
        machines: how many nodes the fleet owns in all.
        delays: durations by name; driver_down: seconds from a driver's death to its successor.
        heartbeat_s: period of heartbeats; loss: chaos of the network; echo: see Cluster.
        driver_skew_s: clocks of successive drivers differ by up to this.
        launch_timeout_s: agents that do not answer a Launch by then fail it.
        checks_returns: nodes that were given back pass the node checks before they are granted again.
        summarised: one JobReport stands for all heartbeats, so that quiet times cost nothing.
    """

    policy: Policy
    work: Workload
    machines: int
    delays: Mapping[str, Distribution] = field(default_factory=dict)
    stretch: float = 1.0
    heartbeat_s: float = 2.0
    loss: Loss = field(default_factory=Loss)
    echo: bool = True
    driver_skew_s: float = 0.0
    summarised: bool = False
    launch_timeout_s: float = 20.0
    checks_returns: bool = True


class World:
    """Runs until the job has ended or time is up."""

    def __init__(self, spec: WorldSpec, seed: object, observer: Observer) -> None:
        self.spec, self._observer = spec, observer
        self._rng = random.Random(f"{seed}/drivers")
        self.queue = EventQueue(EPOCH_S)
        delays = Delays(random.Random(f"{seed}/delays"), spec.delays, spec.stretch)
        self.network = Network(self.queue, delays, random.Random(f"{seed}/network"), spec.loss)
        self.storage = Storage(self.queue)
        self.cluster = Cluster(
            [Machine(f"node-{number}") for number in range(spec.machines)],
            spec.work,
            ranks_per_node=spec.policy.ranks_per_node,
            queue=self.queue,
            delays=delays,
            network=self.network,
            storage=self.storage,
            echo=spec.echo,
            launch_timeout_s=spec.launch_timeout_s,
            checks_returns=spec.checks_returns,
        )
        if spec.summarised:
            self.cluster.reporter = Summary(self.cluster)
        else:
            rng = random.Random(f"{seed}/heartbeats")
            self.cluster.reporter = Heartbeats(self.queue, self.network, rng, spec.heartbeat_s)
        self.delays = delays
        self.store = RecordStore(spec.policy, lazy=spec.summarised)
        self.drivers: list[SimDriver] = []

    @property
    def driver(self) -> SimDriver:
        return self.drivers[-1]

    @property
    def ended(self) -> bool:
        return self.driver.core.record.state is JobState.FINISHED and self.driver.alive

    def start(self) -> None:
        self._take_over()

    def run(self, for_s: float, stop: Callable[[], bool] | None = None) -> None:
        """Let time pass until the job has ended, `stop` says so, or `for_s` seconds are over."""
        end = self.queue.now + for_s
        while not self.ended and not (stop and stop()) and self.queue.run_next(end):
            pass

    def usurp(self, wakes_after_s: float) -> None:
        """A second driver takes over although the first is only asleep."""
        sleeper = self.driver
        if sleeper.alive:
            sleeper.sleep()
            self._take_over()
            self.queue.after(wakes_after_s, sleeper.wake)

    def _take_over(self) -> None:
        skew = self._rng.uniform(-1, 1) * self.spec.driver_skew_s
        driver = SimDriver(self.cluster, self.store, self._observer, self._on_death, skew_s=skew)
        self.drivers.append(driver)
        self.network.driver = driver.feed
        driver.start()
        self.cluster.join_all()

    def _on_death(self, driver: SimDriver) -> None:
        if driver is self.driver:
            self.queue.after(self.delays.sample("driverDown"), lambda: self._succeed(driver))

    def _succeed(self, dead: SimDriver) -> None:
        if dead is self.driver:
            self._take_over()
