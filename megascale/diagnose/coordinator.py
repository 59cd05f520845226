"""Tests nodes together: each by itself, then in pairs. Every wait is bounded; no answer is a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from megascale.diagnose.checks import Check, NodeReport
from megascale.diagnose.expected import table_floors
from megascale.diagnose.fleet import (
    LEAST_CPU,
    LEAST_CPU_PAIR,
    LEAST_GPU,
    Answers,
    FleetReport,
    node_checks,
    pair_checks,
)
from megascale.diagnose.pairing import Pair, Pairings, PairResult, waves
from megascale.diagnose.wire import Line, connect
from megascale.errors import UnreachableError

_EXAMINE_S: Final = 55.0
_PAIR_GRACE_S: Final = 8.0
_PASSES: Final = 3
_MORE_PASSES: Final = 3

Progress = Callable[[str, int, int], object]
"""Called with what is being done, how many of them are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a test.

    Attributes:
        total_s: the whole test; what is not known by then is unknown.
        pair_s: one wait within a pair: to connect, or one all-reduce.
        at_once: nodes or pairs under test at the same time; 0 = all. 1 where nodes share a machine.
    """

    total_s: float = 60.0
    pair_s: float = 10.0
    at_once: int = 0


class _Node:
    """A node under test, at the other end of a line."""

    def __init__(self, name: str, line: Line, hello: dict[str, Any]) -> None:
        self.name = name
        self.address = str(hello["address"])
        self.gpus = int(hello["gpus"])
        self.ranks = int(hello["ranks"])
        self.hardware = ""
        self._line = line
        self._next_id = 0
        self._gone = ""

    async def ask(
        self, timeout_s: float, on_port: Callable[[int], object] = lambda _: None, **request: object
    ) -> dict[str, Any]:
        """The node's answer; `error` is set when there is none, then the node is not asked again."""
        if self._gone:
            return {"error": self._gone}
        self._next_id += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._line.send({"id": self._next_id, **request})
                while "port" in (answer := await self._line.receive()):
                    on_port(int(answer["port"]))
        except TimeoutError:
            self._gone = f"no answer within {timeout_s:g} s"
        except ConnectionError as error:
            self._gone = f"the node went away: {error}"
        return {"error": self._gone} if self._gone else answer

    async def close(self) -> None:
        await self._line.close()


class Coordinator:
    """One test of several nodes.

    Args:
        addresses: (host, port) in order of nearness; neighbours are paired first.
    """

    def __init__(
        self, addresses: Sequence[tuple[str, int]], *, token: bytes, limits: Limits, progress: Progress
    ) -> None:
        self._addresses = addresses
        self._token = token
        self._limits = limits
        self._progress = progress
        self._nodes: dict[str, _Node] = {}
        self._unreachable: dict[str, str] = {}
        self._passes: list[dict[str, Answers]] = []
        self._pairings = Pairings((), least=LEAST_CPU_PAIR)

    async def run(self) -> FleetReport:
        """Test; at most `limits.total_s` and a second.

        Raises:
            UnreachableError: not one node can be reached.
        """
        begin = time.monotonic()
        complete = False
        try:
            async with asyncio.timeout(self._limits.total_s):
                await self._connect()
                await self._examine()
                await self._test_pairs()
                complete = True
        except TimeoutError:
            self._progress("out of time", 0, 0)
        finally:
            await asyncio.gather(*(node.close() for node in self._nodes.values()))
        return self._report(time.monotonic() - begin, complete=complete)

    async def _connect(self) -> None:
        async def one(host: str, port: int) -> None:
            try:
                line, hello = await connect(host, port, self._token)
            except UnreachableError as error:
                self._unreachable[f"{host}:{port}"] = str(error)
                return
            name = str(hello["node"])
            found[f"{host}:{port}"] = _Node(name, line, hello)

        found: dict[str, _Node] = {}
        self._progress("connecting", 0, len(self._addresses))
        await asyncio.gather(*(one(host, port) for host, port in self._addresses))
        for host, port in self._addresses:  # in the order given, whoever answered first
            address = f"{host}:{port}"
            if node := found.get(address):
                node.name = address if node.name in self._nodes else node.name
                self._nodes[node.name] = node
        if not self._nodes:
            raise UnreachableError(
                f"no node can be reached: {'; '.join(list(self._unreachable.values())[:3])}; start "
                "`python -m megascale.diagnose --serve HOST:PORT` on each"
            )

    async def _examine(self) -> None:
        """Passes over all nodes; three more when a node looks slow, before it is called so."""
        for _ in range(_PASSES):
            await self._pass()
        if any(check.status == "slow" for checks in self._checks().values() for check in checks):
            for _ in range(_MORE_PASSES):
                await self._pass()

    async def _pass(self) -> None:
        """Every node by itself once, `at_once` of them together; not those that are convicted anyway."""
        nodes = [self._nodes[name] for name in self._not_broken()]
        answers: dict[str, Answers] = {}
        self._passes.append(answers)

        async def one(node: _Node) -> None:
            answer = await node.ask(_EXAMINE_S, op="examine")
            node.hardware = answer.get("hardware", node.hardware)
            failed = [{"op": "node", "rank": 0, "error": answer["error"]}] if "error" in answer else []
            answers[node.name] = answer.get("answers", failed)

        size = self._limits.at_once or len(nodes) or 1
        for at in range(0, len(nodes), size):
            self._progress(f"each node by itself, pass {len(self._passes)}", at, len(nodes))
            await asyncio.gather(*(one(node) for node in nodes[at : at + size]))

    async def _test_pairs(self) -> None:
        """Rounds of pairs over the nodes that passed by themselves; a slow one is measured again."""
        checks = self._checks()
        passed = [name for name in self._not_broken() if all(c.status != "slow" for c in checks[name])]
        gpus = all(self._nodes[name].gpus for name in passed)
        self._pairings = Pairings(passed, least=LEAST_GPU if gpus else LEAST_CPU_PAIR)
        while pairs := self._pairings.next_round():
            await self._round(pairs, "pairs")
            while again := self._pairings.doubtful():
                await self._round(again, "slow pairs again")

    async def _round(self, pairs: Sequence[Pair], what: str) -> None:
        done = 0
        for wave in waves(pairs, self._limits.at_once or len(pairs) or 1):
            self._progress(f"{what}, round {self._pairings.round}", done, len(pairs))
            for result in await asyncio.gather(*(self._pair(a, b) for a, b in wave)):
                self._pairings.add(result)
            done += len(wave)

    async def _pair(self, a: str, b: str) -> PairResult:
        """One all-reduce of all ranks of two nodes; the first node serves the store."""
        one, other = self._nodes[a], self._nodes[b]
        size, pair_s = one.ranks + other.ranks, self._limits.pair_s
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        fields: dict[str, Any] = {"op": "pair", "size": size, "host": one.address, "timeout": pair_s}

        async def second() -> dict[str, Any]:
            await asyncio.wait((port, first), return_when=asyncio.FIRST_COMPLETED)
            if not port.done():
                return {}
            return await other.ask(pair_s + _PAIR_GRACE_S, first=one.ranks, port=port.result(), **fields)

        first = asyncio.ensure_future(
            one.ask(pair_s + _PAIR_GRACE_S, port.set_result, first=0, port=0, **fields)
        )
        answers = await asyncio.gather(first, second())
        return _pair_result(a, b, self._pairings.round, dict(zip((a, b), answers, strict=True)))

    def _not_broken(self) -> list[str]:
        """Nodes that did not fail and gave no wrong numbers so far."""
        checks = self._checks()
        return [name for name in checks if all(c.status not in ("wrong", "failed") for c in checks[name])]

    def _checks(self) -> dict[str, list[Check]]:
        """Checks of all nodes by themselves; peers are nodes of the same hardware."""
        found: dict[str, list[Check]] = {}
        kinds: dict[str, list[str]] = {}
        for name, node in self._nodes.items():
            kinds.setdefault(node.hardware, []).append(name)
        for hardware, names in kinds.items():
            gpus = any(self._nodes[name].gpus for name in names)
            floors = table_floors(hardware) if gpus else {}
            passes = [{name: one[name] for name in names if name in one} for one in self._passes]
            tables = dict.fromkeys(names, floors)
            found |= node_checks(passes, tables, LEAST_GPU if gpus else LEAST_CPU)
        return {name: found.get(name, []) for name in self._nodes}

    def _report(self, seconds: float, *, complete: bool) -> FleetReport:
        conclusion = self._pairings.conclude()
        pairs = pair_checks(conclusion, self._pairings.results)
        reports = tuple(
            NodeReport(name, self._nodes[name].hardware, tuple(_with_pairs(checks, pairs.get(name))), seconds)
            for name, checks in self._checks().items()
        )
        return FleetReport(
            reports=reports,
            pairs=conclusion,
            results=tuple(self._pairings.results),
            rounds=self._pairings.round,
            seconds=seconds,
            complete=complete,
            unreachable=self._unreachable,
            bad_pairs=frozenset(self._pairings.bad()),
        )


def _with_pairs(checks: Iterable[Check], pairs: Check | None) -> list[Check]:
    return [*checks, pairs] if pairs else list(checks)


def _pair_result(a: str, b: str, number: int, answers: dict[str, dict[str, Any]]) -> PairResult:
    ranks = [rank for answer in answers.values() for rank in answer.get("ranks", ())]
    errors = [f"{node}: {answer['error']}" for node, answer in answers.items() if "error" in answer]
    errors += [
        f"{node}: rank {rank['rank']}: {rank['error']}"
        for node, answer in answers.items()
        for rank in answer.get("ranks", ())
        if "error" in rank
    ]
    if errors or not ranks:
        return PairResult(a, b, number, None, "failed", "; ".join(errors)[:300])
    taken = max(float(rank["seconds"]) for rank in ranks)
    wrong = next((str(rank["wrong"]) for rank in ranks if rank["wrong"]), "")
    return PairResult(a, b, number, taken, "wrong" if wrong else "", wrong)
