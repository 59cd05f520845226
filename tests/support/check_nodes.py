"""Nodes that wait to be tested, as processes: on loopback, or each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FAST = "200mbit"
SLOW = "20mbit"


@dataclass
class CheckNode:
    """One `python -m megascale.diagnose --serve`, the leader of its process group."""

    process: subprocess.Popen[str]
    name: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def start(cls, name: str, *options: str, address: str, prefix: Sequence[str] = ()) -> CheckNode:
        command = [sys.executable, "-m", "megascale.diagnose", "--serve", address, "--name", name]
        process = subprocess.Popen(
            [*prefix, *command, "--threads", "1", *options],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return cls(process)

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        document = json.loads(self.process.stdout.readline())
        self.name, self.host, self.port = document["node"], document["host"], document["port"]

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def throttled(self, running_s: float, stopped_s: float) -> Iterator[None]:
        """All processes of the node run for `running_s`, stand still for `stopped_s`, and so on."""
        done = threading.Event()

        def cycle() -> None:
            while not done.wait(running_s):
                self.signal(signal.SIGSTOP)
                done.wait(stopped_s)
                self.signal(signal.SIGCONT)

        thread = threading.Thread(target=cycle)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.signal(signal.SIGCONT)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def nodes_on_loopback(count: int, faults: dict[int, str] | None = None) -> Iterator[list[CheckNode]]:
    """`count` nodes on this machine; `faults` are injected by node number."""
    nodes: list[CheckNode] = []
    try:
        for i in range(count):
            fault = ("--inject", faults[i]) if faults and i in faults else ()
            nodes.append(CheckNode.start(f"n{i}", *fault, address="127.0.0.1:0"))
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            node.close()


class NotPermittedError(Exception):
    """This machine does not let us make network namespaces, or shape traffic."""


class Switch:
    """Network namespaces joined by a bridge: one per node, and one for the bridge and the coordinator.

    Namespaces are held by processes, so nothing is left when they end and nothing of the machine changes.
    Node i is 10.77.0.(i + 1); all its traffic is shaped to FAST both ways.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders: list[subprocess.Popen[bytes]] = []
        self._root = os.geteuid() == 0

    def __enter__(self) -> Switch:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()

    def host(self, i: int) -> str:
        return f"10.77.0.{i + 1}"

    def inside(self, i: int | None) -> list[str]:
        """What to put before a command to run it in node i, or beside the bridge (None)."""
        holder = self._holders[0 if i is None else i + 1]
        user = [] if self._root else ["-U", "--preserve-credentials"]
        return ["nsenter", "-t", str(holder.pid), *user, "-n", "--"]

    def shape_node(self, i: int, rate: str) -> None:
        """All traffic of node i, both ways."""
        for where, device in ((i, "eth0"), (None, f"port{i}")):
            self._run(where, "tc", "qdisc", "replace", "dev", device, "root", *_tbf(rate))

    def shape_link(self, i: int, j: int, rate: str) -> None:
        """Only the traffic between nodes i and j; each of them is as fast as before with all others."""
        for one, other in ((i, j), (j, i)):
            self._run(one, "tc", "qdisc", "del", "dev", "eth0", "root")
            self._run(one, "tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
            for number, speed in ((1, FAST), (2, rate)):
                classid = ("parent", "1:", "classid", f"1:{number}")
                self._run(one, "tc", "class", "add", "dev", "eth0", *classid, "htb", "rate", speed)
            match = ("match", "ip", "dst", f"{self.host(other)}/32", "flowid", "1:2")
            add = ("tc", "filter", "add", "dev", "eth0", "parent", "1:", "protocol", "ip", "prio", "1")
            self._run(one, *add, "u32", *match)

    def restore(self) -> None:
        for i in range(self.count):
            self._run(i, "tc", "qdisc", "del", "dev", "eth0", "root")
            self.shape_node(i, FAST)

    def _build(self) -> None:
        user = [] if self._root else ["-U", "-r"]
        self._hold(["unshare", *user, "-n"])
        self._run(None, "ip", "link", "set", "lo", "up")
        self._run(None, "ip", "link", "add", "bridge", "type", "bridge")
        self._run(None, "ip", "addr", "add", "10.77.0.254/24", "dev", "bridge")
        self._run(None, "ip", "link", "set", "bridge", "up")
        for i in range(self.count):
            self._hold([*self.inside(None), "unshare", "-n"])
            pid = str(self._holders[-1].pid)
            peer = ("peer", "name", "eth0", "netns", pid)
            self._run(None, "ip", "link", "add", f"port{i}", "type", "veth", *peer)
            self._run(None, "ip", "link", "set", f"port{i}", "master", "bridge", "up")
            self._run(i, "ip", "addr", "add", f"{self.host(i)}/24", "dev", "eth0")
            self._run(i, "ip", "link", "set", "eth0", "up")
            self._run(i, "ip", "link", "set", "lo", "up")
            self.shape_node(i, FAST)

    def _hold(self, prefix: list[str]) -> None:
        """A process that keeps a namespace; it says when it is in it."""
        try:
            holder = subprocess.Popen(
                [*prefix, "sh", "-c", "echo ready; exec sleep infinity"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise NotPermittedError(f"{error.filename} is not installed") from error
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        with holder.stdout, holder.stderr:
            if not holder.stdout.readline():
                raise NotPermittedError(f"{' '.join(prefix)}: {holder.stderr.read().decode().strip()}")

    def _run(self, where: int | None, *command: str) -> None:
        try:
            done = subprocess.run(
                [*self.inside(where), *command], capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise NotPermittedError(f"{error.filename} is not installed") from error
        if done.returncode:
            raise NotPermittedError(f"{' '.join(command)}: {done.stderr.strip()}")


def _tbf(rate: str) -> tuple[str, ...]:
    return "tbf", "rate", rate, "burst", "128kb", "latency", "100ms"


@contextlib.contextmanager
def nodes_behind(switch: Switch, token_file: Path) -> Iterator[list[CheckNode]]:
    """A node in each namespace of the switch."""
    nodes: list[CheckNode] = []
    try:
        for i in range(switch.count):
            address = f"{switch.host(i)}:7070"
            options = ("--token-file", str(token_file))
            nodes.append(CheckNode.start(f"n{i}", *options, address=address, prefix=switch.inside(i)))
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            node.close()
