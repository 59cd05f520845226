"""The first process of a container: creates namespaces and mounts, then executes the container's command.

Run as `python -I -S enter.py SPEC REPORT_FD` with only the standard library. It writes `pid N` to REPORT_FD
(the host's id of the container's process 1), then `error TEXT` if the command could not be started. It
exits with the command's exit code, 128+n after signal n; killing it ends the whole container.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import sys
from pathlib import Path
from typing import Any

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_BIND, _REC, _PRIVATE, _REMOUNT, _READONLY = 4096, 16384, 1 << 18, 32, 1
_PDEATHSIG = 1
_SHADOWED = ("/run", "/tmp", "/mnt", "/dev")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net")
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _checked(result, f"mount {source} on {target}")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    report = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)
    _isolate()
    child = os.fork()
    if child == 0:
        _become(spec, report)
    os.write(report, f"pid {child}\n".encode())
    os.close(report)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _isolate() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEWNS | _NEWPID | (_NEWUSER if user else 0)), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _become(spec: dict[str, Any], report: int) -> None:
    try:
        _libc.prctl(_PDEATHSIG, signal.SIGKILL)
        os.set_inheritable(report, False)
        _lay_out(spec)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(report, f"error {error}\n".encode())
        os._exit(127)


def _lay_out(spec: dict[str, Any]) -> None:
    """Create all mounts. Sources are opened first, because the new /tmp may hide them."""
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("proc", "/proc", "proc", 0)
    kept = [path for path in spec["visible"] if path.startswith(tuple(f"{one}/" for one in _SHADOWED))]
    mounts = [{"source": path, "target": path, "readOnly": False} for path in kept] + spec["mounts"]
    sources = [os.open(one["source"], os.O_PATH | os.O_CLOEXEC) for one in mounts]
    devices = {name: os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in _present_devices()}
    for path in _SHADOWED:
        _mount("tmpfs", path, "tmpfs", 0, "mode=1777" if path == "/tmp" else "mode=755")
    _make_dev(devices)
    for one, source in zip(mounts, sources, strict=True):
        _bind(source, one["target"], read_only=one["readOnly"])
    if spec["readOnlyRoot"]:
        taken = {one["target"] for one in mounts}
        for path in ("/", *_SHADOWED):
            if path not in {"/dev", *taken}:
                _mount("none", path, "", _REMOUNT | _BIND | _READONLY)


def _present_devices() -> list[str]:
    nvidia = [path.name for path in Path("/dev").glob("nvidia*")]
    return [name for name in (*_DEVICES, *nvidia) if Path("/dev", name).exists()]


def _make_dev(devices: dict[str, int]) -> None:
    for name, source in devices.items():
        _bind(source, f"/dev/{name}", read_only=False)
    for name, target in _LINKS.items():
        Path("/dev", name).symlink_to(target)
    Path("/dev/shm").mkdir()
    _mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=64m")


def _bind(source: int, target: str, *, read_only: bool) -> None:
    if stat.S_ISDIR(os.fstat(source).st_mode):
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
    _mount(f"/proc/self/fd/{source}", target, "", _BIND | _REC)
    if read_only:
        _mount("none", target, "", _REMOUNT | _BIND | _READONLY)


main()
