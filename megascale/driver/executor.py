"""Executes the core's effects and reports their results to the core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.driver import wire
from megascale.driver.compare import compare_speed
from megascale.driver.links import Links, NodeLostError, OrderFailedError
from megascale.errors import FencedError, MegascaleError
from megascale.fleet.base import Fleet, FleetRefusedError, Health
from megascale.rpc import megascale_pb2 as pb

_LAUNCH_TIMEOUT_S: Final = 120.0
_KILL_SLACK_S: Final = 2.0
_SCAN_SLACK_S: Final = 4.0
_LEAST_SCAN_S: Final = 1.0
_FleetEffect = fx.Acquire | fx.Release | fx.RestartSlot | fx.RequestQuarantine | fx.Probe


class EffectExecutor:
    """Turns effects into orders to agents and calls to the fleet.

    Every effect results in one EffectDone, EffectFailed or FleetRefused event. Errors other than
    MegascaleError, OSError and RpcError propagate to the task group and end the driver, as does FencedError.

    Args:
        post: queues the resulting event for the core.
        scan_commits: posts commits that the core has not seen, within the given number of seconds; called
            before a Kill is reported as done.
        alert: adds a message to the status.
        finish: releases every node and writes the summary.
    """

    def __init__(
        self,
        links: Links,
        fleet: Fleet,
        *,
        term: int,
        post: Callable[[ev.Event], None],
        scan_commits: Callable[[float], Awaitable[None]],
        alert: Callable[[str], None],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        self._links, self._fleet, self._term = links, fleet, term
        self._post, self._scan_commits, self._alert, self._finish = post, scan_commits, alert, finish
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, effect: fx.Effect, tasks: asyncio.TaskGroup) -> None:
        """Execute the effect in a task of `tasks`; does nothing if an effect with the same id is running."""
        if effect.effect_id in self._tasks:
            return
        task = tasks.create_task(self._perform(effect), name=effect.effect_id)
        self._tasks[effect.effect_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(effect.effect_id, None))

    def cancel(self) -> None:
        """Cancel the running effects; the next driver starts them again from the record."""
        for task in self._tasks.values():
            task.cancel()

    async def _perform(self, effect: fx.Effect) -> None:
        try:
            detail = await self._carry_out(effect)
        except FleetRefusedError as error:
            self._post(ev.FleetRefused(effect.effect_id, str(error)))
        except FencedError:
            raise
        except (MegascaleError, OSError, grpc.RpcError) as error:
            nodes = tuple(getattr(error, "nodes", ()))
            self._post(ev.EffectFailed(effect.effect_id, str(error) or type(error).__name__, nodes))
        except asyncio.CancelledError:
            self._post(ev.EffectFailed(effect.effect_id, "the driver ended before it was done"))
            raise
        else:
            self._post(ev.EffectDone(effect.effect_id, detail))

    async def _carry_out(self, effect: fx.Effect) -> dict[str, Any]:
        match effect:
            case fx.Launch():
                await self._launch(effect)
            case fx.Kill():
                return await self._kill(effect)
            case fx.CheckNodes():
                return await self._check(effect)
            case fx.SaveNow():
                self._broadcast(effect.attempt, wire.save_order(self._term, effect))
            case fx.CollectEvidence():
                await self._collect(effect)
            case fx.Page():
                self._alert(effect.reason)
            case fx.Finish():
                await self._finish()
            case fx.Exclude():
                pass  # the record holds the exclusion; neither agents nor the fleet need an order
            case _:
                await self._ask_fleet(effect)
        return {}

    async def _ask_fleet(self, effect: _FleetEffect) -> None:
        match effect:
            case fx.Acquire():
                await self._fleet.acquire(effect.effect_id, effect.count, effect.avoid)
            case fx.Release():
                await self._fleet.release(effect.node)
            case fx.RestartSlot():
                await self._fleet.restart(effect.effect_id, effect.node)
            case fx.RequestQuarantine():
                await self._fleet.quarantine(effect.node, effect.incident)
            case fx.Probe():
                health = await self._probe(effect)
                link = self._links.get(effect.node)
                if health.healthy is None and link is not None and link.is_heard:
                    health = await compare_speed(self._links, effect, self._term) or health
                self._post(ev.ProbeResult(effect.effect_id, effect.node, health.healthy, health.detail))

    async def _probe(self, effect: fx.Probe) -> Health:
        """Have the fleet look at the node; a fleet that does not answer in time could not tell."""
        bound = asyncio.timeout(effect.deadline_s)
        try:
            async with bound:
                return await self._fleet.probe(effect.node)
        except TimeoutError:
            if not bound.expired():
                raise
            return Health(healthy=None, detail=f"the fleet did not answer in {effect.deadline_s:g} s")

    def _broadcast(self, attempt: int, order: pb.DriverMessage) -> None:
        """Send an order to the agents that run `attempt`."""
        for link in self._links:
            if link.attempt == attempt:
                link.send(order)

    async def _collect(self, effect: fx.CollectEvidence) -> None:
        """Ask every node; one that is not connected, as after a driver's start, until the deadline."""
        order = wire.evidence_order(self._term, effect)

        async def ask(node: str) -> None:
            async with asyncio.timeout(effect.deadline_s):
                link = await self._links.wait_for(node)
            if link.attempt == effect.attempt:
                link.send(order)

        _raise_unexpected(await asyncio.gather(*map(ask, effect.nodes), return_exceptions=True))

    async def _launch(self, effect: fx.Launch) -> None:
        host = effect.nodes[0]
        (store,) = await self._each((host,), [wire.host_store_order(self._term, effect)])
        async with asyncio.timeout(_LAUNCH_TIMEOUT_S):
            address = (await self._links.wait_for(host)).address
        orders = wire.launch_orders(self._term, effect, address, store.store_port)
        await self._each(effect.nodes, orders)

    async def _each(
        self, nodes: tuple[str, ...], messages: Sequence[pb.DriverMessage]
    ) -> list[pb.CommandResult]:
        """Send one message to each node concurrently and return the results in the same order.

        Raises:
            OrderFailedError: some nodes failed; the message is the first failure's, `nodes` lists all.
        """
        orders = [
            self._links.order(node, message, _LAUNCH_TIMEOUT_S)
            for node, message in zip(nodes, messages, strict=True)
        ]
        results = await asyncio.gather(*orders, return_exceptions=True)
        failed = [(n, r) for n, r in zip(nodes, results, strict=True) if isinstance(r, BaseException)]
        if failed:
            _raise_unexpected(results)
            node, problem = failed[0]
            reason = str(problem) or f"{node} did not answer in {_LAUNCH_TIMEOUT_S:g} s"
            raise OrderFailedError(reason, tuple(name for name, _ in failed))
        return [result for result in results if isinstance(result, pb.CommandResult)]

    async def _kill(self, effect: fx.Kill) -> dict[str, Any]:
        began = time.monotonic()
        order = wire.kill_order(self._term, effect)
        waits = [self._kill_on(node, order, effect.deadline_s + _KILL_SLACK_S) for node in effect.nodes]
        unreaped = [node for node in await asyncio.gather(*waits) if node]
        # The core waits slightly longer than the deadline; the scan may use the rest of that time.
        left_s = effect.deadline_s + _SCAN_SLACK_S - (time.monotonic() - began)
        await self._scan_commits(max(_LEAST_SCAN_S, left_s))
        return {"unreaped": unreaped}

    async def _check(self, effect: fx.CheckNodes) -> dict[str, Any]:
        order = wire.check_order(self._term, effect)
        answers = await asyncio.gather(
            *(self._links.order(node, order, effect.deadline_s) for node in effect.nodes),
            return_exceptions=True,
        )
        _raise_unexpected(answers)
        # A node that did not answer is not counted as one that computes wrong numbers.
        return {
            "convicted": {
                node: answer.wrong_numbers
                for node, answer in zip(effect.nodes, answers, strict=True)
                if isinstance(answer, pb.CommandResult) and answer.wrong_numbers
            }
        }

    async def _kill_on(self, node: str, order: pb.DriverMessage, timeout_s: float) -> str:
        """Kill the ranks on a node; returns its name if ranks may still run there, else ""."""
        try:
            result = await self._links.order(node, order, timeout_s)
        except NodeLostError:
            return ""
        except (OrderFailedError, TimeoutError):
            return node
        for event in wire.snapshot_events(node, result.snapshots):
            self._post(event)
        return node if result.unreaped else ""


def _raise_unexpected(results: Sequence[object]) -> None:
    """Raise the first error that is not one of the errors `Links.order` documents."""
    for result in results:
        if isinstance(result, BaseException) and not isinstance(
            result, OrderFailedError | NodeLostError | TimeoutError
        ):
            raise result
