"""Runs a container as a process with its own namespaces."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from kubelet.volumes import Volumes

Json = dict[str, Any]
_ENTER = Path(__file__).with_name("enter.py")
_REPOSITORY = Path(__file__).parents[4]
_LONGEST_MESSAGE = 4096
_READ_ONLY = ("configMap", "secret", "projected", "downwardAPI")


class StartError(Exception):
    """The container's command could not be executed."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Running:
    """A started container. `pid` is the id of its process 1 on the host."""

    process: asyncio.subprocess.Process
    pid: int
    started_at: str = field(default_factory=now)

    async def wait(self) -> int:
        """Wait for the end; return the exit code, 128+n after signal n."""
        code = await self.process.wait()
        return code if code >= 0 else 128 - code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to process 1; SIGKILL ends the whole container."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def tree(self) -> list[psutil.Process]:
        """Return all processes of the container."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def freeze(self) -> None:
        """Stop all processes, including those forked in the meantime."""
        stopped: set[int] = set()
        while fresh := [one for one in self.tree() if one.pid not in stopped]:
            for one in fresh:
                stopped.add(one.pid)
                _send(one, signal.SIGSTOP)

    def thaw(self) -> None:
        for one in self.tree():
            _send(one, signal.SIGCONT)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def mounts(pod: Json, container: Json, volumes: Volumes) -> list[Json]:
    """Return sources and targets of the mounts, outer targets first."""
    kinds = {one["name"]: one for one in pod["spec"].get("volumes", ())}
    found = []
    for mount in container.get("volumeMounts", ()):
        fixed = any(kind in kinds[mount["name"]] for kind in _READ_ONLY)
        source = volumes.path(mount["name"])
        if mount.get("subPath"):
            source /= mount["subPath"]
        entry = {"source": str(source), "target": mount["mountPath"]}
        found.append(entry | {"readOnly": fixed or mount.get("readOnly", False)})
    return sorted(found, key=lambda one: len(str(one["target"])))


async def start(
    folder: Path, container: Json, argv: list[str], variables: dict[str, str], mounted: list[Json], log: Path
) -> Running:
    """Start a container; its spec and termination message are in `folder`. Raises: StartError."""
    folder.mkdir(parents=True, exist_ok=True)
    message = folder / "termination"
    message.write_bytes(b"")
    message.chmod(0o666)
    ending = {"source": str(message), "target": container["terminationMessagePath"], "readOnly": False}
    visible = sorted({str(_REPOSITORY), sys.prefix, sys.base_prefix})
    spec = {"argv": argv, "env": variables, "mounts": [*mounted, ending], "visible": visible}
    spec["cwd"] = container.get("workingDir", "/")
    spec["readOnlyRoot"] = container.get("securityContext", {}).get("readOnlyRootFilesystem", False)
    path = folder / "spec.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(spec))
    reading, writing = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(_ENTER), str(path), str(writing),
            pass_fds=[writing], stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, env={},
        )  # fmt: skip
    os.close(writing)
    report = await _read_all(reading)
    lines = dict(line.split(" ", 1) for line in report.splitlines())
    if "error" in lines or "pid" not in lines:
        await process.wait()
        raise StartError(lines.get("error", f"the container ended before it began: {log.read_text()[-500:]}"))
    return Running(process, int(lines["pid"]))


async def _read_all(descriptor: int) -> str:
    """Read until the other end is closed, which happens when the command starts."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        return (await reader.read()).decode()
    finally:
        transport.close()


def termination_message(folder: Path, container: Json, code: int, log: Path) -> str:
    """Return the content of terminationMessagePath, or by its policy the end of the log."""
    text = (folder / "termination").read_bytes()[:_LONGEST_MESSAGE].decode(errors="replace")
    if text or code == 0 or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return text
    return log.read_bytes()[-2048:].decode(errors="replace")
