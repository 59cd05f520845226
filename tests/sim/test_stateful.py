"""Hypothesis chooses what goes wrong and how long to wait; the invariants are checked after every event."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from megascale.core.eventlog import Entry
from megascale.core.state.record import JobState
from megascale.sim.driver import SimDriver
from megascale.sim.faults import KINDS, Fault, inject
from megascale.sim.invariants import Invariants
from megascale.sim.trial import TIME_LIMIT_S, spec_of
from megascale.sim.world import EPOCH_S, World


class HostileWorld(RuleBasedStateMachine):
    """A simulated job under whatever hypothesis thinks of."""

    @initialize(seed=st.integers(0, 200))
    def begin(self, seed: int) -> None:
        self.rules_of_the_game = Invariants()
        self.world = World(spec_of(seed), f"stateful/{seed}", self._observe)
        self.world.start()

    def _observe(self, driver: SimDriver, entry: Entry) -> None:
        self.rules_of_the_game.check(driver, entry)

    @rule(
        kind=st.sampled_from(sorted(set(KINDS) - {"stop", "suspend", "respec"})),
        victim=st.integers(0, 9),
        value=st.floats(0, 0.99),
    )
    def something_happens(self, kind: str, victim: int, value: float) -> None:
        inject(self.world, Fault(self.world.queue.now - EPOCH_S, kind, victim, value))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 7.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run(TIME_LIMIT_S)
            assert self.world.driver.core.record.state is JobState.FINISHED
            self.rules_of_the_game.completed_means_all_steps(self.world)


TestHostileWorld = HostileWorld.TestCase
TestHostileWorld.settings = settings(
    max_examples=60,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
