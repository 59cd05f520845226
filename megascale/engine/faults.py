"""Faults injected by the manifest: for demonstrations and tests of recovery."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from megascale.engine.context import RankLaunch
from megascale.job.faults import Fault
from megascale.observe.fault_markers import FaultMarker, leave_marker

_DRAG: Final = 2.0


class _Drag:
    """Makes every forward pass of this process take three times as long."""

    def __init__(self) -> None:
        self._depth, self._began = 0, 0.0
        register_module_forward_pre_hook(self._enter)
        register_module_forward_hook(self._leave)

    def _enter(self, _module: object, _inputs: object) -> None:
        if self._depth == 0:
            self._began = time.monotonic()
        self._depth += 1

    def _leave(self, _module: object, _inputs: object, _output: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            time.sleep(_DRAG * (time.monotonic() - self._began))


def _driver_pid(run_dir: Path) -> int:
    return int(json.loads((run_dir / "driver.json").read_text())["pid"])


class FaultInjector:
    """Fires each fault once per job, on the rank it is addressed to.

    A marker, written before the fault acts, keeps a restarted job from meeting it again and tells agents and
    driver that it was injected (`megascale.observe.fault_markers`).
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        launch: RankLaunch,
        send: Callable[[int, int], None] = os.kill,
        send_group: Callable[[int, int], None] = os.killpg,
    ) -> None:
        """`send` and `send_group` deliver a signal to a process and to a process group."""
        self._launch = launch
        self._send = send
        self._send_group = send_group
        self._armed = [(index, fault) for index, fault in enumerate(faults) if self._is_ours(fault)]

    def _is_ours(self, fault: Fault) -> bool:
        if fault.rank is not None:
            return fault.rank == self._launch.rank
        if fault.node is not None:
            return fault.node == self._launch.node and self._launch.local_rank == 0
        return self._launch.rank == 0

    def reach(self, point: str, step: int) -> None:
        """Called when the rank comes to `point` ("step", "save" or "commit") of `step`.

        Does not return from a fault that kills the rank.
        """
        for index, fault in self._armed:
            if fault.point == point and fault.step == step and self._claim(index, fault):
                self._act(fault.kind)

    def _claim(self, index: int, fault: Fault) -> bool:
        launch = self._launch
        marker = FaultMarker(time.time(), fault.kind, launch.rank, launch.node, launch.attempt, fault.step)
        return leave_marker(launch.run_dir / "faults", index, marker)

    def _act(self, kind: str) -> None:
        match kind:
            case "killRank":
                self._send(os.getpid(), signal.SIGKILL)
            case "stopRank":
                self._send(os.getpid(), signal.SIGSTOP)
            # Agent, zygote and ranks of a node are one process group.
            case "killNode":
                self._send_group(os.getpgrp(), signal.SIGKILL)
            case "stopNode":
                self._send_group(os.getpgrp(), signal.SIGSTOP)
            case "slowRank":
                _Drag()
            case "killDriver":
                self._send(_driver_pid(self._launch.run_dir), signal.SIGKILL)
            case _:
                raise ValueError(f"unknown fault kind {kind!r}")
