"""What a user's own program sees when the agent starts it, and how it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megascale.agent.command import command_environment, kill_strays, spawn
from megascale.engine.context import RankLaunch
from megascale.errors import InputError


def launch(tmp_path: Path, interface: str = "eth7", **network: Any) -> RankLaunch:
    return RankLaunch(
        job="job",
        spec={"spec": {"network": network, "recovery": {"maxRestarts": 7}}},
        term=1,
        attempt=3,
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=2,
        node="node-2",
        node_rank=2,
        store_host="127.0.0.1",
        store_port=1234,
        run_dir=tmp_path,
        rank_file=tmp_path / "ranks" / "node-2-1.rank",
        resume=None,
        lineage={},
        interface=interface,
    )


def test_torchruns_variables_are_all_there(tmp_path: Path) -> None:
    found = command_environment(launch(tmp_path), {"RANK": "wrong", "MINE": "yes"})
    expected = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "GROUP_WORLD_SIZE": "4",
        "ROLE_RANK": "5",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1234",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "7",
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MINE": "yes",
        "NCCL_IB_TIMEOUT": "22",
    }
    assert expected.items() <= found.items()
    assert found["PATH"].startswith(str(Path(sys.executable).parent))
    assert found["GLOO_SOCKET_IFNAME"] == "eth7"


def test_given_variables_win_over_the_network_profile(tmp_path: Path) -> None:
    found = command_environment(launch(tmp_path, interface="", ibTimeout=20), {"NCCL_IB_TIMEOUT": "19"})
    assert (found["NCCL_IB_TIMEOUT"], found["NCCL_IB_RETRY_CNT"]) == ("19", "7")
    assert command_environment(launch(tmp_path), {"GLOO_SOCKET_IFNAME": "ib0"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found.get("GLOO_SOCKET_IFNAME") == os.environ.get("GLOO_SOCKET_IFNAME")


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"args: nothing-like-it: no such program"):
        spawn(["nothing-like-it"], {"PATH": "/bin"}, tmp_path / "log")


@pytest.mark.multiprocess
def test_what_a_program_started_is_ended_with_it(tmp_path: Path) -> None:
    rank_file = tmp_path / "a.rank"
    environment = {"PATH": "/bin:/usr/bin", "MEGASCALE_RANK_FILE": str(rank_file)}
    log = tmp_path / "log"
    pid = spawn(["sh", "-c", "sleep 600 & echo started $!; wait"], environment, log)
    end = time.monotonic() + 10
    while not log.exists() or "started" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    sleeper = int(log.read_text().split()[1])
    other = subprocess.Popen(["sleep", "600"], env={**environment, "MEGASCALE_RANK_FILE": f"{rank_file}2"})
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert kill_strays({rank_file}) == 1
    while Path(f"/proc/{sleeper}").exists() and "Z" not in Path(f"/proc/{sleeper}/stat").read_text():
        assert time.monotonic() < end
    assert other.poll() is None
    other.kill()
    other.wait()
