"""Ranks that run a user's own program: how it is started, and how everything it started is ended."""

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
    """What the program sees: this process's environment, `given` over it, and what torchrun sets.

    Ranks talk over the interface of their node's address unless the environment names another.
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
    """Where programs are looked for: `python` is the interpreter that MegaScale runs under."""
    return os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))


def program_of(args: Sequence[str], path: str) -> str:
    """The file of the program that `args` start.

    Raises:
        InputError: there is no such program.
    """
    program = shutil.which(args[0], path=path)
    if program is None:
        raise InputError(f"spec.runtime.command.args: {args[0]}: no such program in {Path.cwd()} or on PATH")
    return program


def spawn(args: list[str], environment: dict[str, str], log: Path) -> int:
    """Start the program in this process group; returns its pid.

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
    """SIGKILL whatever the programs of these rank records started (loader workers, shells); how many.

    They are known by their environment: a program's children keep $MEGASCALE_RANK_FILE, whoever adopts them.
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
