"""Deterministic simulation testing: many seeds, every invariant after every event.

python -m megascale.sim.explore --seeds 20000 --jobs 2
python -m megascale.sim.explore --seed 4711 --faults 0,3     # one failing trial, with its transcript
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence

from megascale.sim.faults import Fault
from megascale.sim.trial import Outcome, faults_of, run_trial, transcript

FAILURES_SHOWN = 5
PROGRESS_EVERY = 1000


def minimise(seed: int, indices: Sequence[int]) -> tuple[int, ...]:
    """The smallest sublist found (delta debugging) of the seed's faults that still breaks an invariant."""
    everything = faults_of(seed)

    def fails(chosen: Sequence[int]) -> bool:
        return bool(run_trial(seed, [everything[index] for index in chosen]).violation)

    current, chunk = list(indices), max(1, len(indices) // 2)
    while True:
        for start in range(0, len(current), chunk):
            fewer = current[:start] + current[start + chunk :]
            if fails(fewer):
                current = fewer
                break
        else:
            if chunk == 1:
                return tuple(current)
            chunk //= 2


def reproduction(seed: int, indices: Iterable[int]) -> str:
    chosen = ",".join(str(index) for index in indices) or "none"
    return f"python -m megascale.sim.explore --seed {seed} --faults {chosen}"


def explore(seeds: Sequence[int], jobs: int) -> tuple[list[Outcome], collections.Counter[str]]:
    """Run seeds over processes; the failures, and how the others ended."""
    failures: list[Outcome] = []
    states: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcome in pool.imap_unordered(run_trial, seeds, chunksize=50):
            states[outcome.state or "no end"] += 1
            if outcome.violation:
                failures.append(outcome)
                print(f"seed {outcome.seed}: {outcome.violation}", file=sys.stderr, flush=True)
            if (done := states.total()) % PROGRESS_EVERY == 0:
                left_s = (time.monotonic() - begun) * (len(seeds) / done - 1)
                progress = (
                    f"{done:,} of {len(seeds):,} seeds, {len(failures)} violations, {left_s:.0f} s left"
                )
                print(progress, file=sys.stderr, flush=True)
            if len(failures) >= FAILURES_SHOWN:
                pool.terminate()
                break
    return failures, states


def show(seed: int, indices: Sequence[int]) -> int:
    """Run one trial with its transcript; 1 if an invariant broke."""
    everything: tuple[Fault, ...] = faults_of(seed)
    outcome = run_trial(seed, [everything[index] for index in indices], keep_log=True)
    print(transcript(outcome))
    return 1 if outcome.violation else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="run this one and print its transcript")
    parser.add_argument("--faults", help="indices of the seed's faults to keep, or none")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        chosen = list(range(len(faults_of(options.seed))))
        if options.faults:
            chosen = [int(i) for i in options.faults.split(",") if options.faults != "none"]
        return show(options.seed, chosen)
    begun = time.monotonic()
    failures, states = explore(range(options.first, options.first + options.seeds), options.jobs)
    for outcome in failures:
        kept = minimise(outcome.seed, range(len(outcome.faults)))
        print(f"\n{outcome.violation}\n  {reproduction(outcome.seed, kept)}")
        show(outcome.seed, kept)
    elapsed_s = time.monotonic() - begun
    total = sum(states.values())
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    print(f"{total} seeds in {elapsed_s:.0f} s, {len(failures)} violations; ended: {ended}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
