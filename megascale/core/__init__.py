"""The decision core of a training job: events and a time in, effects with reasons out.

`Core` is a deterministic state machine, in the style of etcd's raft library. It decides when ranks are
launched, stopped and restarted, which node is at fault, which checkpoint is restored, and when a person is
paged. It reads no clock, opens no socket or file, draws no random numbers and starts no thread. A shell does
that for it: `megascale.driver` for a real job, `megascale.sim` for a simulated one, `core.eventlog` for a
recorded one. The same decisions come out in all three.

The parts, each of which imports only those below it:

    machine     `Core`: dispatches each event to its handler, runs timers, snapshots and restores the state
    handlers    one function for each event and timer; updates the state and calls `act`
    act         commands: launch, stop, recover, exclude and replace nodes, suspend, finish
    decide      queries: which action, which nodes, which checkpoint, who is to blame; they change nothing
    state       the job record, what agents reported, open incidents, the goodput ledger
    rules       what log lines and XIDs mean; stats: stragglers, spikes and throughput decay
    contract    events, effects, the policy, their enumerations and their encoding as JSON

Driving the core
----------------

A shell restores a `Core` from the stored snapshot, or makes a new one, and then repeats: take an event, call
`step` with it and the time, write the snapshot, carry out the effects, and feed their results back.

    >>> from megascale.core.api import Core, Policy, events
    >>> core = Core(Policy(nodes=1, steps=100))
    >>> [acquire] = core.step(events.DriverStarted(term=1), now=1000.0)
    >>> acquire.reason
    '1 of 1 nodes are missing'

The fleet has a node for the job, and an agent on it joins. The core launches the first attempt:

    >>> core.step(events.EffectDone(acquire.effect_id), now=1001.0)
    []
    >>> [launch] = core.step(events.NodeJoined("node-a", incarnation="1"), now=1002.0)
    >>> launch.attempt, launch.nodes, launch.resume
    (1, ('node-a',), None)
    >>> core.step(events.EffectDone(launch.effect_id), now=1003.0)
    []

A rank is killed: the core has the others killed too, and would launch attempt 2 when they are reaped.

    >>> died = events.RankExited("node-a", "1", attempt=1, rank=0, signal=9, at=1004.0)
    >>> [kill] = core.step(died, now=1004.1)
    >>> kill.reason
    'i-1: rank 0 on node-a was killed by SIGKILL'

The driver dies here. Its successor restores the snapshot, which holds the effect that was not answered:

    >>> successor = Core.restore(core.policy, core.snapshot())
    >>> [again] = successor.step(events.DriverStarted(term=2), now=1010.0)
    >>> again == kill
    True

What a shell guarantees
-----------------------

- The first event of every driver life is `DriverStarted`, with a term that is higher than every one before. A
  driver that meets a higher term stops at once.
- Events come one at a time, in the order in which they arrived. `now` is Unix seconds; the core clamps it so
  that it never goes back. `waited_s` says how long the event waited to be taken in.
- Time in which the shell itself did not run, or effects waited to be written, is told by `DriverPaused`.
- A `Tick`, or any other event, comes by `next_deadline()`.
- The event and its effects are in the event log, and the snapshot is stored, before an effect is carried out.
  A driver that cannot write waits: nothing is done that its successor would not know of.
- Every effect is answered by `EffectDone`, `EffectFailed` or `FleetRefused`, also when it is issued a second
  time under the same id. Carrying it out twice has the same result as once.
- Agents refuse commands of an older term or attempt, so that a driver or a rank that was given up for dead
  can do no harm. A checkpoint counts only once it is committed, exclusively.

What the core guarantees
------------------------

Tests and the simulator (`megascale/sim/invariants.py`) check these after every event:

- Attempts are numbered upwards, and each is launched once. What an attempt resumes from is on the lineage of
  its predecessor: history never forks, and a step goes back only by a decided roll-back.
- A node that the job excluded gets no ranks before it passed the checks or a person released it. Automation
  excludes no more nodes than its bounds allow; beyond them it pages.
- Every state but FINISHED has an event or a timer that leaves it, and no timer fires without end.
- The snapshot is at most 64 KiB of JSON, and a core restored from it decides as the original would.
- Each second of a job belongs to exactly one goodput phase.
- Every effect and every incident has a reason that a person can read.

Records and event logs of other versions are read as far as this version knows them; see
`contract/codec.py`, `handlers/newer_record.py` and docs/decisions/0098-records-and-logs-of-other-versions.md.
"""
