"""The simulated cluster: machines, the agents on them, storage, and the attempts that really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from megascale.core.contract.events import CommitDone, NodeGone, NodeJoined, RankEvidence, RankExited
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import RankPhase
from megascale.sim.delays import Delays
from megascale.sim.event_queue import EventQueue
from megascale.sim.fleet import Fleet
from megascale.sim.machines import RUNNING, Machine
from megascale.sim.network import Network
from megascale.sim.storage import Storage
from megascale.sim.training import Run, Workload

PEER_ERROR = "DistBackendError"
PEER_MESSAGE = "Connection closed by peer"


class Reporter(Protocol):
    """How the state of the ranks reaches the driver: heartbeat by heartbeat, or summarised."""

    def joined(self, machine: Machine) -> None: ...

    def silent(self, machine: Machine) -> None: ...

    def changed(self, run: Run) -> None: ...


class Cluster:
    """What agents do on command, and what they report by themselves.

    Attributes:
        machines: by name; runs: by attempt; reporter: set by whoever builds the simulation.
        wrong_numbers: defects that make a node compute nonsense; check_recall: how often a check finds one.
        echo: ranks whose peer died end with a connection error after a delay, as over gloo; without it
            they wait for ever, as inside NCCL.
    """

    reporter: Reporter

    def __init__(
        self,
        machines: list[Machine],
        work: Workload,
        *,
        ranks_per_node: int,
        queue: EventQueue,
        delays: Delays,
        network: Network,
        storage: Storage,
        echo: bool,
        launch_timeout_s: float,
        checks_returns: bool,
    ) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.work, self.ranks_per_node, self.echo = work, ranks_per_node, echo
        self.launch_timeout_s, self.checks_returns = launch_timeout_s, checks_returns
        self.queue, self.delays, self.network, self.storage = queue, delays, network, storage
        self.fleet = Fleet(queue, delays, self._boot_granted, list(machines))
        self.runs: dict[int, Run] = {}
        self.wrong_numbers: frozenset[str] = frozenset()
        self.check_recall = 1.0
        self.listeners: list[Callable[[Run], None]] = []
        storage.on_landed = lambda commit: network.publish(CommitDone(commit.step, commit.attempt, queue.now))

    # Machines and their agents

    def _boot_granted(self, machine: Machine) -> None:
        self.queue.after(self.delays.sample("boot"), lambda: self.boot(machine))

    def boot(self, machine: Machine) -> None:
        """A fresh agent starts and joins, unless the machine is down or was given back."""
        if machine.held and machine.power:
            machine.boot()
            self.join(machine)
            self.reporter.joined(machine)

    def join(self, machine: Machine) -> None:
        """Join, and report the exits of the newest attempt again, since the stream was broken."""
        if not (machine.held and machine.reachable):
            return
        hello = NodeJoined(
            machine.name,
            machine.agent,
            machine.launched,
            tuple(sorted(machine.ranks)),
            checked=machine.checked,
        )
        self.network.send(machine, hello)
        for event in machine.exits:
            self.network.send(machine, event)

    def join_all(self) -> None:
        """A new driver is up: every agent reconnects with jitter."""
        for machine in self.machines.values():
            if machine.held and machine.incarnation:
                delay = self.delays.sample("reconnect")
                self.queue.after(delay, lambda machine=machine: self.join(machine))  # type: ignore[misc]

    def power_off(self, machine: Machine) -> None:
        machine.power = False
        self.reporter.silent(machine)
        run = machine.run
        machine.stop_agent()
        if run is not None:
            self._echo(run)

    def release(self, machine: Machine) -> None:
        """The agent ends and the node goes back to the fleet, to be repaired if it is at fault."""
        if not machine.held:
            return
        machine.stop_agent()
        broken = machine.defect is not None or not machine.power or machine.stuck
        stage = "repair" if broken else "clean"
        self.fleet.give_back(machine, self.delays.sample(stage), checked=self.checks_returns)

    def fleet_notices(self, machine: Machine, incarnation: str | None, reason: str, *, planned: bool) -> None:
        """The fleet reports that a node is gone, and takes it back."""
        event = NodeGone(machine.name, incarnation, reason, at=self.queue.now, planned=planned)
        self.network.publish(event)
        self.release(machine)

    # What agents do on command

    def accept(self, machine: Machine, token: tuple[int, int]) -> str:
        """Whether an agent takes orders of this (term, attempt): "" or why not."""
        if token < machine.seen:
            return f"{machine.name} has seen term {machine.seen[0]}, attempt {machine.seen[1]}"
        machine.seen = token
        return ""

    def fork(self, machine: Machine, token: tuple[int, int], run: Run) -> str:
        """Start the ranks of an attempt that was accepted; "" or why not. Idempotent per attempt."""
        if token < machine.seen or run.attempt <= machine.killed or not machine.incarnation:
            return f"{machine.name} got another order meanwhile"
        if machine.launched == run.attempt:
            return ""
        if machine.ranks or machine.run is not None:
            machine.drop_ranks()
        machine.launched, machine.exits, machine.run = run.attempt, [], run
        first = run.place[machine.name] * self.ranks_per_node
        machine.ranks = dict.fromkeys(range(first, first + self.ranks_per_node), RUNNING)
        machine.behind = False
        if machine.defect == "unlaunchable":
            machine.drop_ranks()
            return f"{machine.name}: the device cannot be opened"
        run.forked_on(machine.name)
        return ""

    def kill(self, machine: Machine, term: int, attempt: int) -> bool:
        """Kill ranks of `attempt` or older; whether all were reaped."""
        if (term, attempt) < machine.seen:
            return True
        machine.seen, machine.killed = (term, attempt), max(machine.killed, attempt)
        if machine.run is not None and machine.run.attempt <= attempt:
            if machine.stuck:
                return False
            machine.drop_ranks()
        return True

    def evidence(self, machine: Machine) -> tuple[RankEvidence, ...]:
        run = machine.run
        if run is None:
            return ()
        step, _ = run.position()
        entered = 10 * step + (4 if machine.behind else 5)
        return tuple(
            RankEvidence(rank, state, step, RankPhase.BACKWARD, 0, entered)
            for rank, state in machine.ranks.items()
        )

    # What ranks do

    def exit_rank(
        self,
        machine: Machine,
        rank: int,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        error: tuple[str, str] = ("", ""),
        detail: Commit | None = None,
        echo: bool = True,
    ) -> None:
        """A rank process ends; its agent reports it, and its peers may notice."""
        run = machine.run
        if run is None or rank not in machine.ranks:
            return
        del machine.ranks[rank]
        event = RankExited(
            machine.name,
            machine.agent,
            run.attempt,
            rank,
            exit_code=exit_code,
            signal=signal,
            at=self.queue.now + machine.skew_s,
            step=run.position()[0],
            error_type=error[0],
            error_message=error[1],
            error_detail={"step": detail.step, "attempt": detail.attempt} if detail else {},
        )
        machine.exits.append(event)
        incarnation = machine.agent
        self.queue.after(self.delays.sample("exit"), lambda: self._tell_exit(machine, incarnation, event))
        if exit_code not in (0, 76):
            run.block(f"rank {rank} exited")
            if echo:
                self._echo(run)

    def _tell_exit(self, machine: Machine, incarnation: str, event: RankExited) -> None:
        if machine.reachable and machine.incarnation == incarnation:
            self.network.send(machine, event)

    def _echo(self, run: Run) -> None:
        """Peers of a dead rank find their connections closed and end too."""
        if not self.echo or run.ended:
            return
        for name in run.nodes:
            machine = self.machines[name]
            for rank in list(machine.ranks) if machine.run is run else ():
                delay = self.delays.sample("echo")
                self.queue.after(delay, lambda m=machine, r=rank: self._end_by_echo(run, m, r))  # type: ignore[misc]

    def _end_by_echo(self, run: Run, machine: Machine, rank: int) -> None:
        if machine.run is run and machine.ranks.get(rank) == RUNNING:
            self.exit_rank(machine, rank, exit_code=1, error=(PEER_ERROR, PEER_MESSAGE), echo=False)

    # Watcher of the runs

    def run_changed(self, run: Run) -> None:
        self.reporter.changed(run)
        for listener in self.listeners:
            listener(run)

    def ranks_left(self, run: Run, exit_code: int) -> None:
        for name in run.nodes:
            machine = self.machines[name]
            for rank in list(machine.ranks) if machine.run is run else ():
                self.exit_rank(machine, rank, exit_code=exit_code)

    def load_failed(self, run: Run, commit: Commit) -> None:
        machine = self.machines[run.nodes[0]]
        rank = min(machine.ranks, default=None)
        if rank is not None:
            error = ("CheckpointCorruptError", f"checksum of step {commit.step} does not match")
            self.exit_rank(machine, rank, exit_code=1, error=error, detail=commit)
