"""Restarts the driver when it dies and shows its status, until the job ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any, Final

import grpc
import psutil

from megascale.checkpoint.snapshot_folders import remove_folders
from megascale.cli.view import View
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.errors import JobFailedError, UnreachableError
from megascale.observe.rundir import RunDir, is_locked
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import bearer, channel_to, read_address, read_token, stub_on

_QUICK_DEATH_S: Final = 5.0
_QUICK_DEATHS: Final = 5
_CONNECT_S: Final = 30.0
_RETRY_S: Final = 0.05
_ENDED: Final = frozenset(FinishState)


class Supervisor:
    """One `megascale run`: the owner of the run's lock starts drivers, others only watch."""

    def __init__(self, run: RunDir, view: View) -> None:
        self._run, self._view = run, view
        self._driver: subprocess.Popen[bytes] | None = None
        self._interrupts = 0
        self._last: dict[str, Any] = {}

    async def supervise(self, *, owner: bool) -> tuple[dict[str, Any], bool]:
        """Follow the job to its end; returns its summary and whether a person stopped it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt, owner)
        loop.add_signal_handler(signal.SIGTERM, self._on_interrupt, owner)
        if not owner:
            self._view.note("this job is already running; attached to it (Ctrl-C detaches)")
        follow = asyncio.create_task(self._follow(owner=owner))
        self._task = follow
        with self._view:
            try:
                await follow
            except asyncio.CancelledError:
                if owner:
                    self._kill_everything()
        return self._summary(), self._interrupts > 0

    async def _follow(self, *, owner: bool) -> None:
        deaths, loop = 0, asyncio.get_running_loop()
        started_s: float | None = None
        while True:
            if owner and not self._driver_lives():
                if started_s is not None:
                    deaths = deaths + 1 if loop.time() - started_s < _QUICK_DEATH_S else 1
                    self._report_death(deaths)
                started_s = loop.time()
                self._start_driver()
            elif started_s is None:
                started_s = loop.time()
            if await self._watch():
                return
            if not owner:
                raise UnreachableError("the driver went away and the run that owns it is gone too")
            if self._driver_lives():
                # Closing, or killed and not yet gone: it answers nobody, and each try costs a channel.
                await asyncio.sleep(_RETRY_S)

    def _report_death(self, deaths: int) -> None:
        """Say how the driver ended; JobFailedError when so many in a row ended at once."""
        if deaths >= _QUICK_DEATHS:
            raise JobFailedError(f"the driver died {deaths} times in a row:\n{self._driver_log_tail()}")
        code = self._driver.wait() if self._driver else None
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with {code}"
        self._view.note(f"the driver was {how}; starting the next one, training goes on")

    def _start_driver(self) -> None:
        self._run.driver_file.unlink(missing_ok=True)
        log = self._run.root / "logs" / "driver.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "megascale.driver", str(self._run.root)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _driver_lives(self) -> bool:
        if self._driver is not None:
            return self._driver.poll() is None
        address = read_address(self._run.driver_file)
        return address is not None and psutil.pid_exists(address.pid) and is_locked(self._run.driver_lock)

    async def _watch(self) -> bool:
        """Show one driver's documents until the job ended (True) or the driver is lost (False)."""
        address = await self._address()
        if address is None:
            return False
        async with channel_to(address) as channel:
            call = stub_on(channel).Watch(
                pb.WatchRequest(), metadata=bearer(read_token(self._run.token_file))
            )
            try:
                async for status in call:
                    self._last = json.loads(status.document)
                    self._view.update(self._last)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise UnreachableError(
                        f"the driver refused this run's token: {error.details()}"
                    ) from error
        if self._last.get("state") not in _ENDED or self._run_is_unfinished():
            return False
        if self._driver is not None:
            await asyncio.to_thread(self._driver.wait)
        return True

    def _run_is_unfinished(self) -> bool:
        """End the nodes of a driver that reported the job's end and died before it released them."""
        return not self._run.summary_file.exists()

    async def _address(self) -> Any:  # noqa: ANN401 - DriverAddress | None
        loop = asyncio.get_running_loop()
        end = loop.time() + _CONNECT_S
        while loop.time() < end:
            address = read_address(self._run.driver_file)
            if address is not None:
                return address
            if self._driver is not None and self._driver.poll() is not None:
                return None
            await asyncio.sleep(_RETRY_S)
        return None

    def _on_interrupt(self, owner: bool) -> None:
        self._interrupts += 1
        if not owner or self._interrupts > 1:
            self._task.cancel()
            return
        self._view.note("stopping: saving a checkpoint first; Ctrl-C again stops at once")
        self._stopping = asyncio.create_task(self._ask_to_stop())

    async def _ask_to_stop(self) -> None:
        address = read_address(self._run.driver_file)
        if address is None:
            self._task.cancel()
            return
        request = pb.CommandRequest(command=Command.STOP, reason="stopped by Ctrl-C")
        async with channel_to(address) as channel:
            try:
                await stub_on(channel).Command(request, metadata=bearer(read_token(self._run.token_file)))
            except grpc.aio.AioRpcError:
                self._task.cancel()

    def _kill_everything(self) -> None:
        """The second Ctrl-C: driver, agents and ranks, without saving."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        for path in self._run.agents.glob("*.json"):
            with contextlib.suppress(ProcessLookupError, ValueError, KeyError):
                os.killpg(int(json.loads(path.read_text())["pid"]), signal.SIGKILL)
        remove_folders(self._run.root)

    def _summary(self) -> dict[str, Any]:
        try:
            summary: dict[str, Any] = json.loads(self._run.summary_file.read_text())
        except (FileNotFoundError, ValueError):
            return {**self._last, "state": "interrupted"}
        return summary

    def _driver_log_tail(self) -> str:
        lines = (self._run.root / "logs" / "driver.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])
