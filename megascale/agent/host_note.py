"""What the node says that may explain the end of a rank: kills for lack of memory, a small /dev/shm."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_MIB: Final = 1 << 20
_SHM: Final = Path("/dev/shm")  # noqa: S108 - not for temporary files
_RECORDS: Final = 4096
_RECORD_BYTES: Final = 8192
_TEXT: Final = 200
_KILLED: Final = re.compile(rb"(?:oom-kill:|Out of memory: Killed process|Memory cgroup out of memory)")
_ABOUT_SHM: Final = re.compile(r"shared memory|/dev/shm|bus error|</torch_", re.IGNORECASE)


class HostNotes:
    """Compares the counters of the node's cgroup, and reads its kernel log, from one launch to the exits.

    Args:
        kernel_log: /dev/kmsg or a text file, None = there is none to read.
        cgroup: folder of this process's cgroup (v2), found by itself unless given.
    """

    def __init__(self, kernel_log: Path | None, cgroup: Path | None = None, shm: Path = _SHM) -> None:
        self._cgroup, self._shm = cgroup or _own_cgroup(), shm
        self._kills = 0
        self._kernel = -1
        if kernel_log is not None:
            with contextlib.suppress(OSError):
                self._kernel = os.open(kernel_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.begin()

    def begin(self) -> None:
        """What happened up to now does not explain exits that follow."""
        self._kills = self._oom_kills()
        if self._kernel >= 0:
            with contextlib.suppress(OSError):
                os.lseek(self._kernel, 0, os.SEEK_END)

    def note(self, *, killed: bool, tail: Sequence[str]) -> str:
        """Return what explains an exit, "" if nothing does.

        Args:
            killed: the rank, or a program that it waited for, was ended by SIGKILL.
            tail: the last lines of its log.
        """
        if killed:
            return "; ".join(text for text in (self._cgroup_says(), self._kernel_says()) if text)
        return self._shm_says() if any(_ABOUT_SHM.search(line) for line in tail) else ""

    def _cgroup_says(self) -> str:
        kills = self._oom_kills() - self._kills
        if kills <= 0:
            return ""
        limit = _read(self._cgroup, "memory.max")
        of = f" of {int(limit) // _MIB} MiB" if limit.isdigit() else ""
        return f"the cgroup's limit{of} was reached (memory.events: oom_kill +{kills})"

    def _oom_kills(self) -> int:
        for line in _read(self._cgroup, "memory.events").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
        return 0

    def _kernel_says(self) -> str:
        found = b""
        with contextlib.suppress(OSError):
            for _ in range(_RECORDS):
                record = os.read(self._kernel, _RECORD_BYTES) if self._kernel >= 0 else b""
                if not record:
                    break
                found = next((line for line in record.splitlines() if _KILLED.search(line)), found)
        text = found.rpartition(b";")[2] if found.startswith((b"0", b"1", b"2", b"3")) else found
        return f"kernel: {text.decode(errors='replace')[:_TEXT]}" if text else ""

    def _shm_says(self) -> str:
        try:
            found = os.statvfs(self._shm)
        except OSError:
            return ""
        size, free = found.f_blocks * found.f_frsize // _MIB, found.f_bavail * found.f_frsize // _MIB
        return f"{self._shm} has {size} MiB, of which {free} are free"


def _own_cgroup() -> Path | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return Path("/sys/fs/cgroup") / line.removeprefix("0::").strip().lstrip("/")
    return None


def _read(folder: Path | None, name: str) -> str:
    if folder is None:
        return ""
    try:
        return (folder / name).read_text().strip()
    except OSError:
        return ""
