"""How a user's program is started, what it sees, and how what it started is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megascale.agent import command as module
from megascale.agent.command import command_environment, kill_strays, program_of, search_path, spawn
from megascale.engine.context import RankLaunch
from megascale.errors import InputError


def launch(folder: Path, *, interface: str = "eth7", network: dict[str, object] | None = None) -> RankLaunch:
    spec: dict[str, object] = {"recovery": {"maxRestarts": 9}}
    if network is not None:
        spec["network"] = network
    return RankLaunch(
        job="q",
        spec={"spec": spec},
        term=3,
        attempt=4,
        rank=5,
        world_size=12,
        local_rank=1,
        local_world_size=2,
        node="n0",
        node_rank=2,
        store_host="10.0.0.1",
        store_port=2900,
        run_dir=folder,
        rank_file=folder / "n0-1.rank",
        resume=None,
        lineage={},
        interface=interface,
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's environment without what the program's is made of."""
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PYTHONUNBUFFERED", "NCCL_IB_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("bare")
def test_a_program_sees_what_torchrun_sets(tmp_path: Path) -> None:
    found = command_environment(launch(tmp_path), {})
    assert (
        found.items()
        >= {
            "RANK": "5",
            "WORLD_SIZE": "12",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "2",
            "GROUP_WORLD_SIZE": "6",
            "ROLE_NAME": "default",
            "ROLE_RANK": "5",
            "ROLE_WORLD_SIZE": "12",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "2900",
            "TORCHELASTIC_RUN_ID": "q",
            "TORCHELASTIC_RESTART_COUNT": "3",
            "TORCHELASTIC_MAX_RESTARTS": "9",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MEGASCALE_RANK_FILE": str(tmp_path / "n0-1.rank"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth7",
            "PYTHONUNBUFFERED": "1",
        }.items()
    )


@pytest.mark.usefixtures("bare")
def test_without_a_known_interface_none_is_named(tmp_path: Path) -> None:
    assert "GLOO_SOCKET_IFNAME" not in command_environment(launch(tmp_path, interface=""), {})


@pytest.mark.usefixtures("bare")
def test_the_manifest_comes_before_the_network_profile_and_that_before_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("NCCL_IB_TIMEOUT", "1")
    monkeypatch.setenv("NCCL_IB_RETRY_CNT", "1")
    monkeypatch.setenv("RANK", "77")
    network = {"ibTimeout": 23, "ibRetryCount": 6}
    found = command_environment(
        launch(tmp_path, network=network), {"NCCL_IB_RETRY_CNT": "2", "PYTHONUNBUFFERED": "", "RANK": "78"}
    )
    assert found["OMP_NUM_THREADS"] == "8"
    assert (found["NCCL_IB_TIMEOUT"], found["NCCL_IB_RETRY_CNT"]) == ("23", "2")
    assert found["PYTHONUNBUFFERED"] == ""
    assert found["RANK"] == "5"
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "flight" / "rank-")


def test_programs_are_looked_for_beside_this_interpreter_first() -> None:
    here = str(Path(sys.executable).parent)
    assert search_path({"PATH": "/a:/b"}) == f"{here}:/a:/b"
    assert search_path({}) == f"{here}:{os.defpath}"


def test_a_program_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert program_of(["sh", "-c", "true"], "/bin") == "/bin/sh"
    with pytest.raises(InputError, match=r"spec\.runtime\.command\.args: nothing-here: no such program in"):
        program_of(["nothing-here"], str(tmp_path))
    with pytest.raises(InputError, match="nothing-here"):
        spawn(["nothing-here"], {"PATH": str(tmp_path)}, tmp_path / "log")


def test_a_program_is_looked_for_on_the_path_that_it_will_see(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text('#!/bin/sh\necho "it is $0"\n')
    program.chmod(0o755)
    pid = spawn(["only-here"], {"PATH": str(tmp_path)}, tmp_path / "log")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "log").read_text() == f"it is {program}\n"


def test_what_a_program_prints_is_appended_to_its_log_and_its_input_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    script = 'cat; echo "$WORD"; echo error >&2; exit 3'
    pid = spawn(["sh", "-c", script], {"PATH": "/bin:/usr/bin", "WORD": "hello"}, log)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert log.read_text() == "before\nhello\nerror\n"


def test_only_what_carries_one_of_the_rank_files_is_ended(tmp_path: Path) -> None:
    def waiting(name: str, value: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(["/bin/cat"], stdin=pipe, stdout=pipe, env={name: value}, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"up\n")
        assert process.stdout.read(3) == b"up\n"
        return process

    mine, other = tmp_path / "n0-0.rank", tmp_path / "n0-1.rank"
    processes = [
        waiting("MEGASCALE_RANK_FILE", str(mine)),
        waiting("MEGASCALE_RANK_FILE", str(mine)),
        waiting("MEGASCALE_RANK_FILE", str(other)),
        waiting("ANOTHER_VARIABLE", str(mine)),
    ]
    try:
        assert kill_strays({mine, tmp_path / "absent.rank"}) == 2
        assert [one.wait() for one in processes[:2]] == [-signal.SIGKILL] * 2
        assert [one.poll() for one in processes[2:]] == [None, None]
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def test_a_process_that_ends_while_it_is_looked_at_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    mark = f"MEGASCALE_RANK_FILE={tmp_path / 'n0-0.rank'}"
    for pid, environment in ((11, None), (12, mark), (13, f"A=b\0{mark}\0"), (14, f"{mark}x"), (15, "")):
        (tmp_path / str(pid)).mkdir()
        if environment is not None:
            (tmp_path / str(pid) / "environ").write_text(environment)
    (tmp_path / "self").mkdir()

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        if pid == 12:
            raise ProcessLookupError

    monkeypatch.setattr(module, "Path", {"/proc": tmp_path}.get)
    monkeypatch.setattr(module.os, "kill", kill)
    assert kill_strays({tmp_path / "n0-0.rank"}) == 1
    assert sorted(killed) == [(12, signal.SIGKILL), (13, signal.SIGKILL)]
