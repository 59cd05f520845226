"""The zygote: a process that has imported the engine once and forks ranks from it.

Importing torch and Megatron-core takes seconds; forking a process that has imported them takes milliseconds.
Requests and answers are JSON messages on a SEQPACKET socket, whose descriptor is the first argument. With
`store` as the second argument the zygote imports less and can fork only stores, which is all that a job with
its own command needs. Ranks are forked twice, so that they become children of the agent (a subreaper): the
agent is notified of their exit, and they survive a replacement of the zygote.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from megascale.core.contract.lineage import Commit
from megascale.engine.context import RankLaunch
from megascale.job.network import Network
from megascale.network.profile import environment as network_environment
from megascale.network.profile import explain
from megascale.observe.rankfile import RankFile
from megascale.prctl import die_with_parent

MESSAGE_BYTES: Final = 1 << 16
_BACKLOG: Final = 4096
_PID: Final = struct.Struct("<q")


def main() -> None:  # pragma: no mutate block
    """Serve fork requests until the agent closes its end of the socket."""
    die_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    if sys.argv[2:] == ["store"]:
        importlib.import_module("torch._C._distributed_c10d")
    else:
        from megascale import engine

        engine.preload()
    gc.collect()
    gc.freeze()
    connection.send(json.dumps({"ready": True}).encode())
    while raw := connection.recv(MESSAGE_BYTES):
        connection.send(json.dumps(_serve(connection, json.loads(raw))).encode())


def _serve(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    problem = unforkable()
    if problem:
        return {"error": problem}
    if request["op"] == "store":
        return _fork_store(connection, request)
    return {"pid": _fork_rank(connection, request)}


def unforkable() -> str:
    """Return why this process must not fork (several threads, or an open GPU device), "" if it may."""
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        return f"the zygote has {threads} threads; a fork would copy locks that nobody releases"
    for descriptor in Path("/proc/self/fd").iterdir():
        target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
        if target.startswith("/dev/nvidia"):
            return f"the zygote has {target} open; a forked CUDA context does not work"
    return ""


def _fork_rank(connection: socket.socket, request: dict[str, Any]) -> int:  # pragma: no mutate block
    def main() -> NoReturn:
        connection.close()
        _rank_main(request)

    return _fork_adopted(main, request["agentPid"])


def _fork_adopted(main: Callable[[], NoReturn], agent_pid: int) -> int:  # pragma: no mutate block
    """Fork a process that becomes the agent's child, dies with it and runs `main`; returns its pid."""
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = os.fork()
        if child:
            os.write(pid_write, _PID.pack(child))
            os._exit(0)
        for descriptor in (pid_read, pid_write, go_write):
            os.close(descriptor)
        if os.read(go_read, 1) != b"1":  # the zygote died, and the agent does not know this process
            os._exit(1)
        os.close(go_read)
        die_with_parent()
        if os.getppid() != agent_pid:
            os._exit(1)
        main()
    os.waitpid(middle, 0)
    os.write(go_write, b"1")
    (pid,) = _PID.unpack(os.read(pid_read, _PID.size))
    for descriptor in (pid_read, pid_write, go_read, go_write):
        os.close(descriptor)
    return int(pid)


def _rank_main(request: dict[str, Any]) -> NoReturn:  # pragma: no mutate block
    _redirect(request["log"])
    launch = launch_from_json(json.loads(Path(request["launch"]).read_text()))
    network = Network.model_validate(launch.spec["spec"].get("network", {}))
    os.environ.update(network_environment(network, launch.run_dir))
    os.environ.update(torchrun_environment(launch))
    for name, value in interface_environment(launch).items():
        os.environ.setdefault(name, value)
    if launch.rank == 0:
        print(*explain(network), sep="\n", flush=True)
    rank_file = RankFile.open(launch.rank_file)
    rank_file.update(pid=os.getpid())
    os._exit(_run(launch, rank_file))


def _run(launch: RankLaunch, rank_file: RankFile) -> int:
    from megascale.engine.rank import run_rank

    try:
        code = run_rank(launch, rank_file)
    except BaseException as error:  # noqa: BLE001 - the process ends here; report every error
        detail = {name: getattr(error, name) for name in ("step", "attempt", "tier") if hasattr(error, name)}
        rank_file.write_exit_report({"type": type(error).__name__, "message": str(error), "detail": detail})
        with contextlib.suppress(OSError):  # the disk of the log is full
            traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


def _redirect(log: str) -> None:  # pragma: no mutate block
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _fork_store(
    connection: socket.socket, request: dict[str, Any]
) -> dict[str, Any]:  # pragma: no mutate block
    """Fork a process that serves the attempt's key-value store until it is killed."""
    port_read, port_write = os.pipe()

    def main() -> NoReturn:
        connection.close()
        os.close(port_read)
        _store_main(request["host"], port_write)

    pid = _fork_adopted(main, request["agentPid"])
    os.close(port_write)
    raw = os.read(port_read, _PID.size)
    os.close(port_read)
    if len(raw) != _PID.size:
        return {"error": f"the store could not listen on {request['host']}"}
    return {"pid": pid, "port": _PID.unpack(raw)[0]}


def _store_main(host: str, write_end: int) -> NoReturn:  # pragma: no mutate block
    from torch._C._distributed_c10d import TCPStore

    listener = listener_on(host)
    store = TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    os.write(write_end, _PID.pack(store.port))
    os.close(write_end)
    signal.pause()
    os._exit(0)


def listener_on(host: str) -> socket.socket:
    """Return a socket that listens on a free port of the IP address `host` only.

    Stores have no credentials. A store that opens its port itself listens on all interfaces.

    Raises:
        OSError: this machine does not have that address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=_BACKLOG)


def torchrun_environment(launch: RankLaunch) -> dict[str, str]:
    """Return the environment variables that torchrun sets, and the path of the rank record."""
    return {
        "RANK": str(launch.rank),
        "WORLD_SIZE": str(launch.world_size),
        "LOCAL_RANK": str(launch.local_rank),
        "LOCAL_WORLD_SIZE": str(launch.local_world_size),
        "GROUP_RANK": str(launch.node_rank),
        "MASTER_ADDR": launch.store_host,
        "MASTER_PORT": str(launch.store_port),
        "TORCHELASTIC_RESTART_COUNT": str(launch.attempt - 1),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MEGASCALE_RANK_FILE": str(launch.rank_file),
    }


def interface_environment(launch: RankLaunch) -> dict[str, str]:
    """Return the variable that binds gloo to the interface of the node's address.

    Without it gloo uses the address that the host name resolves to.
    """
    return {"GLOO_SOCKET_IFNAME": launch.interface} if launch.interface else {}


def launch_to_json(launch: RankLaunch) -> dict[str, Any]:
    """Convert a launch to JSON values."""
    data = {name: getattr(launch, name) for name in launch.__dataclass_fields__}
    data["run_dir"], data["rank_file"] = str(launch.run_dir), str(launch.rank_file)
    data["snapshot_folders"] = [str(folder) for folder in launch.snapshot_folders]
    data["resume"] = _commit_to_json(launch.resume)
    data["lineage"] = {str(attempt): _commit_to_json(commit) for attempt, commit in launch.lineage.items()}
    return data


def write_launch(launch: RankLaunch) -> Path:
    """Write a launch as JSON beside its rank record and return the file."""
    path = launch.rank_file.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(launch_to_json(launch)))
    return path


def launch_from_json(data: dict[str, Any]) -> RankLaunch:
    """Convert the result of `launch_to_json` back to a launch."""
    lineage = {int(attempt): _commit_from_json(commit) for attempt, commit in data["lineage"].items()}
    paths: dict[str, Any] = {name: Path(data[name]) for name in ("run_dir", "rank_file")}
    paths["snapshot_folders"] = tuple(Path(folder) for folder in data["snapshot_folders"])
    return RankLaunch(**{**data, **paths, "resume": _commit_from_json(data["resume"]), "lineage": lineage})


def _commit_to_json(commit: Commit | None) -> list[int] | None:
    return [commit.step, commit.attempt] if commit else None


def _commit_from_json(data: list[int] | None) -> Commit | None:
    return Commit(*data) if data else None


if __name__ == "__main__":
    main()
