"""The process that has torch: `python -m megascale.diagnose.worker`, started by the node's check.

It imports torch once and forks a process for every rank of a check, so that a rank that hangs or dies takes
nothing along and the importing is paid once. Requests and answers are JSON lines on stdin and stdout.
It never opens a GPU itself: a forked CUDA context does not work.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from megascale.prctl import die_with_parent

FAULTS: Final = ("wrong-bits", "slow", "hang")
_SLOWED: Final = 6
_REAP_S: Final = 2.0
_READ_BYTES: Final = 1 << 16


def main() -> None:
    """Serve requests until stdin ends."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    fault = sys.argv[1] if len(sys.argv) > 1 else ""
    import torch

    from megascale.diagnose import collective as _  # noqa: F401 - imported before the first fork

    gpus = torch.cuda.device_count()
    _send(answers, {"ready": True, "gpus": gpus, "torch": torch.__version__, "cpu": _cpu_name()})
    for line in sys.stdin:
        request = json.loads(line)
        _send(answers, {"id": request["id"], "ranks": _serve(request, fault, answers)})


def _send(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def _cpu_name() -> str:
    """Model and number of usable CPUs; the identity of the machine for a baseline."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x{len(os.sched_getaffinity(0))}"
    return f"CPU x{len(os.sched_getaffinity(0))}"


def _serve(request: dict[str, Any], fault: str, answers: TextIO) -> list[dict[str, Any]]:
    """Run one request in forked ranks; one answer per rank."""
    listener = None
    first = request.get("first", 0)
    if request["op"] != "device" and first == 0:
        family = socket.AF_INET6 if ":" in request["host"] else socket.AF_INET
        listener = socket.create_server((request["host"], 0), family=family)
        request["port"] = listener.getsockname()[1]
        _send(answers, {"id": request["id"], "port": request["port"]})

    def rank_main(rank: int) -> dict[str, Any]:
        return _rank(request, rank, listener if rank == 0 else None, fault)

    ranks = range(first, first + request["ranks"])
    children = [_Child.fork(rank, rank_main) for rank in ranks]
    if listener:
        listener.close()
    return _collect(children, time.monotonic() + request["deadline"])


def _rank(request: dict[str, Any], rank: int, listener: socket.socket | None, fault: str) -> dict[str, Any]:
    """One rank's work, in its own process."""
    import torch

    from megascale.diagnose import collective, measure

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank - request.get("first", 0)) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(request["threads"])
    seconds = request["seconds"]
    if request["op"] == "device":
        repeat = _SLOWED if fault == "slow" else 1
        corrupt = fault == "wrong-bits"
        measures = measure.measure_device(
            device, seconds=seconds, host=request["address"], corrupt=corrupt, repeat=repeat
        )
        name = torch.cuda.get_device_name(device) if cuda else "cpu"
        return {"device": name, "measures": [found.as_dict() for found in measures]}
    world = collective.World.from_request(request, rank, listener)
    if request["op"] == "all-to-all":
        return {"measures": [collective.all_to_all(world, device, seconds=seconds).as_dict()]}
    if fault == "hang":
        signal.pause()
    taken, wrong = collective.all_reduce(world, device, seconds=seconds)
    return {"seconds": taken, "wrong": wrong}


class _Child:
    """A forked rank and the pipe its answer comes through."""

    def __init__(self, rank: int, pid: int, pipe: int) -> None:
        self.rank = rank
        self.pid = pid
        self.pipe = pipe
        self.text = b""

    @classmethod
    def fork(cls, rank: int, main: Callable[[int], dict[str, Any]]) -> _Child:
        """Fork; the child runs `main` and ends."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _child_main(rank, main, write)
        os.close(write)
        return cls(rank, pid, read)

    def answer(self) -> dict[str, Any]:
        """The child's answer, or how it exited; the child is reaped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.pipe)
        status = self._reap()
        if status is None:
            return {"rank": self.rank, "error": "cannot be killed: it hangs in the kernel"}
        if self.text.endswith(b"\n"):
            return {"rank": self.rank, **json.loads(self.text)}
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL
        how = f"died by {signal.Signals(os.WTERMSIG(status)).name}" if died else "did not finish in time"
        return {"rank": self.rank, "error": how}

    def _reap(self) -> int | None:
        pidfd = os.pidfd_open(self.pid)
        try:
            ended, _, _ = select.select([pidfd], [], [], _REAP_S)
            return os.waitpid(self.pid, 0)[1] if ended else None
        finally:
            os.close(pidfd)


def _child_main(rank: int, main: Callable[[int], dict[str, Any]], write: int) -> NoReturn:
    die_with_parent()
    try:
        found = main(rank)
    except BaseException as error:  # noqa: BLE001 - the process ends here; every error must leave its reason
        first = (str(error).splitlines() or [""])[0][:200]
        found = {"error": f"{type(error).__name__}: {first}"}
    with os.fdopen(write, "w") as out:
        out.write(json.dumps(found) + "\n")
    os._exit(0)


def _collect(children: list[_Child], deadline: float) -> list[dict[str, Any]]:
    """Wait for all answers, at most until the deadline; then end whoever is left."""
    with selectors.DefaultSelector() as waiting:
        for child in children:
            waiting.register(child.pipe, selectors.EVENT_READ, child)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                piece = os.read(key.fd, _READ_BYTES)
                key.data.text += piece
                if not piece:
                    waiting.unregister(key.fd)
    return [child.answer() for child in children]


if __name__ == "__main__":
    main()
