"""Ranks that run a user's own program: starts the program and kills the processes that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megascale.agent.zygote import interface_environment, torchrun_environment
from megascale.engine.context import RankLaunch
from megascale.errors import InputError
from megascale.job.network import Network
from megascale.network.profile import environment as network_environment


def command_environment(launch: RankLaunch, given: Mapping[str, str]) -> dict[str, str]:
    """Return the program's environment variables.

    In increasing precedence: defaults, the agent's environment, the network profile, `given` (the manifest's
    `env`), and the variables that torchrun sets. By default gloo uses the interface of the node's address.
    """
    nodes = launch.world_size // launch.local_world_size
    defaults = {"OMP_NUM_THREADS": "1", **interface_environment(launch)}
    profile = network_environment(
        Network.model_validate(launch.spec["spec"].get("network", {})), launch.run_dir
    )
    environment = {**defaults, **os.environ, **profile, **given, **torchrun_environment(launch)}
    environment |= {
        "ROLE_NAME": "default",
        "ROLE_RANK": str(launch.rank),
        "ROLE_WORLD_SIZE": str(launch.world_size),
        "GROUP_WORLD_SIZE": str(nodes),
        "TORCHELASTIC_RUN_ID": launch.job,
        "TORCHELASTIC_MAX_RESTARTS": str(launch.spec["spec"]["recovery"]["maxRestarts"]),
        "PYTHONUNBUFFERED": environment.get("PYTHONUNBUFFERED", "1"),
        "PATH": search_path(environment),
    }
    return environment


def search_path(environment: Mapping[str, str]) -> str:
    """Return PATH with the folder of the running interpreter first, so that `python` is that interpreter."""
    return os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))


def program_of(args: Sequence[str], path: str) -> str:
    """Return the file of the program `args[0]`, searched for on `path`.

    Raises:
        InputError: there is no such program.
    """
    program = shutil.which(args[0], path=path)
    if program is None:
        raise InputError(f"spec.runtime.command.args: {args[0]}: no such program in {Path.cwd()} or on PATH")
    return program


def spawn(args: list[str], environment: dict[str, str], log: Path) -> int:
    """Start the program in this process group and return its pid.

    Its stdout and stderr are appended to `log`.

    Raises:
        InputError: there is no such program.
        OSError: it cannot be started.
    """
    program = program_of(args, environment["PATH"])
    with log.open("ab") as output:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        return os.posix_spawn(program, args, environment, file_actions=actions)


def kill_strays(rank_files: set[Path]) -> int:
    """SIGKILL the processes that the programs of these rank records started; returns their number.

    Such processes, e.g. loader workers and shells, are found by the variable $MEGASCALE_RANK_FILE that they
    inherit, so they are found even if another process has adopted them.
    """
    marks = {f"MEGASCALE_RANK_FILE={path}".encode() for path in rank_files}
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marks.isdisjoint((process / "environ").read_bytes().split(b"\0")):
                continue
            os.kill(int(process.name), signal.SIGKILL)
            killed += 1
    return killed
