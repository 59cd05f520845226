"""Run a random sample of a package's mutants, which takes minutes where `make mutants` takes hours.

python tests/support/sample_mutants.py --package core --seed 2 --count 400

mutmut makes the mutants: `mutmut run 'megascale.core.decide.ladder.*'` fills the folder mutants/ with all of
them. The sample is drawn by module in proportion. pytest collects once, in the copy of the tree; each mutant
runs in a fork of that process, the quickest of the tests that call its function first, until one fails or
they take too long. What runs while tests are collected, such as the values of a parametrization, is not
mutated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

FOLDERS: Final = {
    "core": ("megascale/core/decide", "megascale/core/act", "megascale/core/handlers"),
    "agent": ("megascale/agent",),
}
TESTS: Final = {
    "core": ("tests/unit/core", "tests/golden", "--deselect", "tests/unit/core/test_core_properties.py"),
    "agent": ("tests/unit/agent", "tests/unit/network/test_rank_environment.py"),
}
OPTIONS: Final = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout")
MARKS: Final = ("-m", "not multiprocess and not minutes and not proof and not slow")
_SLACK_S: Final = 30.0
_SLOWDOWN: Final = 4.0
_SWITCH: Final = "MUTANT_UNDER_TEST"


def sample(tree: Path, package: str, seed: int, count: int) -> list[str]:
    """Names of mutants: from each module its share of `count`, by largest remainder."""
    names: dict[str, list[str]] = {}
    for folder in FOLDERS[package]:
        for path in sorted((tree / folder).glob("*.meta")):
            found = sorted(json.loads(path.read_text())["exit_code_by_key"])
            if found:
                names[found[0].rsplit(".", 1)[0]] = found
    total = sum(map(len, names.values()))
    quota = {module: count * len(found) / total for module, found in names.items()}
    taken = {module: int(share) for module, share in quota.items()}
    by_remainder = sorted(quota, key=lambda module: quota[module] - taken[module], reverse=True)
    for module in by_remainder[: count - sum(taken.values())]:
        taken[module] += 1
    draw = random.Random(seed)
    chosen = [name for module in sorted(names) for name in draw.sample(names[module], taken[module])]
    draw.shuffle(chosen)
    return chosen


def wilson(killed: int, count: int, z: float = 1.96) -> str:
    """The rate with its 95% interval."""
    rate, scale = killed / count, 1 + z * z / count
    middle = (rate + z * z / (2 * count)) / scale
    half = z * (rate * (1 - rate) / count + z * z / (4 * count * count)) ** 0.5 / scale
    return f"{killed:4} of {count:4}  {rate:6.1%}  [{middle - half:.1%}, {middle + half:.1%}]"


class Sampler:
    """A pytest plugin that runs the mutants instead of the tests."""

    def __init__(self, mutants: list[str], jobs: int) -> None:
        self.mutants, self.jobs = mutants, jobs
        self.killed: dict[str, bool] = {}
        self.late: set[str] = set()
        self.running: dict[int, str] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests, took = self._learn(session.items)
        for name in self.mutants:
            mine = sorted(tests[name.rsplit("__mutmut_", 1)[0]], key=lambda item: took[item])
            while len(self.running) >= self.jobs:
                self._reap()
            pid = os.fork()
            if pid == 0:
                _run_in_child(name, mine, _SLACK_S + _SLOWDOWN * sum(took[item] for item in mine))
            self.running[pid] = name
        while self.running:
            self._reap()
        return True

    def _learn(self, items: list[pytest.Item]) -> tuple[dict[str, list[pytest.Item]], dict[Any, float]]:
        """Run the tests without a mutant: which functions each calls, and how long it takes.

        They run in a fork too: what they leave in a process, such as gRPC's threads, is not forked again.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with os.fdopen(write_end, "w") as pipe:
                    json.dump(_observe(items), pipe)
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            seen = json.loads(pipe.read() or "[]")
        os.waitpid(pid, 0)
        tests: dict[str, list[pytest.Item]] = defaultdict(list)
        took: dict[Any, float] = {}
        for item, (duration_s, functions) in zip(items, seen, strict=True):
            if duration_s is None:
                raise pytest.UsageError(f"{item.nodeid} fails without a mutant")
            took[item] = duration_s
            for function in functions:
                tests[function].append(item)
        return tests, took

    def _reap(self) -> None:
        pid, status = os.wait()
        name = self.running.pop(pid)
        self.killed[name] = status != 0
        if os.WIFSIGNALED(status):
            self.late.add(name)


def _observe(items: Iterable[pytest.Item]) -> list[tuple[float | None, list[str]]]:
    """How long each test takes, None if it fails, and the functions that it calls."""
    state = importlib.import_module("mutmut.state").state()
    os.environ[_SWITCH] = "stats"
    seen: list[tuple[float | None, list[str]]] = []
    for item in items:
        state._stats.clear()
        began = time.monotonic()
        failed = any(report.failed for report in runtestprotocol(item, log=False))
        seen.append((None if failed else time.monotonic() - began, sorted(state._stats)))
    return seen


def _run_in_child(name: str, items: list[pytest.Item], limit_s: float) -> None:
    """End the process with 0 if every test passes; an endless loop ends it by a signal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    os.environ[_SWITCH] = name
    passed = False
    try:
        passed = not any(r.failed for item in items for r in runtestprotocol(item, log=False))
    finally:
        os._exit(0 if passed else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", choices=tuple(FOLDERS), default="core")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", help="names of mutants, instead of a sample")
    arguments = parser.parse_args()
    tree = Path("mutants").resolve()
    mutants = arguments.only or sample(tree, arguments.package, arguments.seed, arguments.count)
    os.chdir(tree)
    os.environ[_SWITCH] = ""
    sys.path[:0] = [str(tree), str(tree / "tests/support")]
    sampler = Sampler(mutants, arguments.jobs)
    pytest.main([*OPTIONS, *MARKS, *TESTS[arguments.package]], plugins=[sampler])
    rates: dict[str, list[bool]] = defaultdict(list)
    for name, killed in sampler.killed.items():
        rates[name.split(".")[2]].append(killed)
        rates["all"].append(killed)
    for folder, found in sorted(rates.items()):
        print(f"{folder:10} {wilson(sum(found), len(found))}")
    for name in sorted(sampler.late):
        print(f"ended by a signal: {name}")
    for name in sorted(name for name, killed in sampler.killed.items() if not killed):
        print(f"survived: {name}")
    return 0 if len(sampler.killed) == len(mutants) else 2


if __name__ == "__main__":
    sys.exit(main())
