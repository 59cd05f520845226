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
from megascale.cli.run_folder import RunLock
from megascale.cli.supervisor_deaths import DriverDeaths, Progress
from megascale.cli.view import View
from megascale.core.contract.vocabulary import Command, FinishState
from megascale.errors import InputError, JobFailedError, UnreachableError
from megascale.fleet.agents import running_agents
from megascale.observe.rundir import RunDir, is_locked
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.connect import DriverAddress, bearer, channel_to, read_address, read_token, stub_on

_CONNECT_S: Final = 30.0
_RETRY_S: Final = 0.05
_LOOK_S: Final = 0.2
_ENDED: Final = frozenset(FinishState)


class Supervisor:
    """One `megascale run`: the owner of the run's lock starts drivers, others only watch."""

    def __init__(self, run: RunDir, view: View, lock: RunLock) -> None:
        self._run, self._view, self._lock = run, view, lock
        self._driver: subprocess.Popen[bytes] | None = None
        self._answered: psutil.Process | None = None
        self._interrupts = 0
        self._last: dict[str, Any] = {}

    async def supervise(self) -> tuple[dict[str, Any], bool]:
        """Follow the job to its end; returns its summary and whether a person stopped it or detached.

        Raises:
            InputError: the driver was given something wrong, so no driver can run the job.
            JobFailedError: drivers end again and again, or the run's folder was removed.
            UnreachableError: the run that owned the job is gone, and its driver too.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._on_interrupt)
        if not self._lock.owned:
            self._view.note("this job is already running; attached to it (Ctrl-C detaches)")
        follow = asyncio.create_task(self._follow_own() if self._lock.owned else self._follow_other())
        self._task = follow
        with self._view:
            try:
                await follow
            except asyncio.CancelledError:
                self._interrupted()
            except (InputError, JobFailedError):
                self._give_up()
                raise
        return self._summary(), self._interrupts > 0

    async def _follow_own(self) -> None:
        """Start a driver whenever there is none, until the job has ended."""
        loop, deaths = asyncio.get_running_loop(), DriverDeaths(self._run.root / "logs" / "driver.log")
        while True:
            deaths.born(loop.time(), self._progress())
            if not self.driver_lives():
                self._start_driver()
            while not await self._watch():
                self._lock.check_folder()
                if not self.driver_lives():
                    break
                # Closing, or killed and not yet gone: it answers nobody, and each try costs a channel.
                await asyncio.sleep(_RETRY_S)
            else:
                return
            code = self._driver.wait() if self._driver else None
            if code == 0 and self._last.get("state") in _ENDED:
                return  # the job was stopped, and the disk has no room for the summary
            how = deaths.died(loop.time(), code, self._progress())
            self._view.note(f"{how}; starting the next one, training goes on")

    async def _follow_other(self) -> None:
        """Watch the drivers that the owner of the lock starts, until the job has ended."""
        while not await self._watch():
            self._lock.check_folder()
            if self.driver_lives():
                await asyncio.sleep(_RETRY_S)
            elif await self.driver_comes():
                self._view.note("the driver was replaced; attached to the next one")
            elif self._run.summary_file.exists() or self._last.get("state") in _ENDED:
                return
            else:
                raise UnreachableError(
                    "the `megascale run` that owned this job has ended, and no driver runs; "
                    "run the job again to resume it"
                )

    async def driver_comes(self) -> bool:
        """Wait for a driver; False once there is none and nobody holds the lock who would start one.

        Raises:
            JobFailedError: the run's folder was removed.
        """
        while not self.driver_lives():
            self._lock.check_folder()
            if not is_locked(self._run.supervisor_lock):
                return self.driver_lives()
            await asyncio.sleep(_LOOK_S)
        return True

    def _progress(self) -> Progress:
        return int(self._last.get("attempt") or 0), int(self._last.get("step") or 0)

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

    def driver_lives(self) -> bool:
        """Whether a driver of this run's job runs, of this `megascale run` or of an earlier one."""
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
                    self._lock.check_folder()
                    self._take(address.pid, json.loads(status.document))
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise UnreachableError(
                        f"the driver refused this run's token: {error.details()}"
                    ) from error
        if self._last.get("state") not in _ENDED or not self._run.summary_file.exists():
            return False
        if self._driver is not None:
            await asyncio.to_thread(self._driver.wait)
        self._lock.check_folder()
        return True

    def _take(self, driver_pid: int, document: dict[str, Any]) -> None:
        if self._answered is None or self._answered.pid != driver_pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._answered = psutil.Process(driver_pid)
        self._last = document
        self._view.update(document)

    async def _address(self) -> DriverAddress | None:
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

    def _on_interrupt(self) -> None:
        self._interrupts += 1
        if not self._lock.owned or self._interrupts > 1:
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

    def _interrupted(self) -> None:
        if self._lock.owned:
            self._kill_everything()
            return
        pid = self._lock.owner_pid() if is_locked(self._run.supervisor_lock) else None
        how = (
            f"press Ctrl-C in the `megascale run` that owns it, or: kill -INT {pid}"
            if pid
            else "run it again and press Ctrl-C"
        )
        self._view.note(f"detached; the job goes on; to stop it, {how}")

    def _give_up(self) -> None:
        """Leave nothing behind that writes to a removed folder; else say what still runs."""
        if not self._lock.owned:
            return
        if self._lock.folder_was_removed():
            self._kill_everything()
        elif nodes := [agent.node for agent in running_agents(self._run)]:
            text = "save a checkpoint and leave after health.orphanSeconds without a driver"
            self._view.note(f"{', '.join(nodes)} still running: they {text}")

    def _kill_everything(self) -> None:
        """Driver, agents and ranks, without saving."""
        driver = self._answered
        if self._driver is not None and self._driver.poll() is None:
            driver = psutil.Process(self._driver.pid)
        # psutil compares start times, so a process that got the id of one that ended is left alone.
        doomed: list[psutil.Process] = []
        if driver is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                doomed = [driver, *driver.children(recursive=True)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for agent in running_agents(self._run):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
        if self._driver is not None:
            self._driver.wait()
        remove_folders(self._run.root)

    def _summary(self) -> dict[str, Any]:
        try:
            summary: dict[str, Any] = json.loads(self._run.summary_file.read_text())
        except (FileNotFoundError, ValueError):
            ended = self._last.get("state") in _ENDED
            return {**self._last, "state": "interrupted"} if self._lock.owned and not ended else self._last
        return summary
