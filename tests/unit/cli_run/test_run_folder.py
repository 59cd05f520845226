"""The folder of a run: one `megascale run` owns it, and `--fresh` spares its locks and what still runs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megascale.cli.run_folder import claim, empty
from megascale.errors import InputError, JobFailedError
from megascale.fleet.agents import open_agent, running_agents, write_agent
from megascale.observe.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "agents").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "record.json").write_text("{}")
    return RunDir(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_emptying_the_folder_keeps_the_lock_of_its_owner(run: RunDir) -> None:
    elsewhere = run.root.parent / f"{run.root.name}-kept"
    elsewhere.mkdir()
    (run.root / "link").symlink_to(elsewhere)
    with claim(run) as lock:
        assert lock.owned
        empty(run, "job")
        assert not lock.folder_was_removed()
        with claim(run) as second:
            assert not second.owned
            assert second.owner_pid() == os.getpid()
    assert sorted(path.name for path in run.root.iterdir()) == ["driver.lock", "run.lock"]
    assert elsewhere.exists()
    with claim(run) as later:
        assert later.owned


def test_an_error_of_the_owner_is_not_taken_for_a_held_lock(run: RunDir) -> None:
    with pytest.raises(BlockingIOError), claim(run):
        raise BlockingIOError


def test_the_folder_of_a_live_driver_is_not_emptied(run: RunDir) -> None:
    run.driver_file.write_text(json.dumps({"endpoint": "127.0.0.1:1", "pid": 4711, "term": 1}))
    with run.driver_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            InputError, match=r"its driver \(pid 4711\) .*without --fresh and press Ctrl-C"
        ) as e:
            empty(run, "job")
    assert e.value.exit_code == 2
    assert run.record_file.exists()
    empty(run, "job")
    assert not run.record_file.exists()


def test_the_folder_of_a_live_agent_is_not_emptied(run: RunDir, sleeper: subprocess.Popen[bytes]) -> None:
    write_agent(run, "node-0", sleeper.pid)
    with pytest.raises(InputError, match=rf"node-0 \(pid {sleeper.pid}\) outlived"):
        empty(run, "job")
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody reaped it
    empty(run, "job")
    assert not run.agents.exists()


@pytest.mark.parametrize(
    "text", ["null", "[]", "{", '{"pid": 1}', '{"pid": 1e99, "startedAt": 0}', '{"pid": -1}']
)
def test_a_damaged_agent_file_names_no_process(run: RunDir, text: str) -> None:
    (run.agents / "node-0.json").write_text(text)
    assert open_agent(run.agents / "node-0.json") is None
    assert list(running_agents(run)) == []


def test_a_process_that_got_the_id_of_an_agent_is_not_its_agent(
    run: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    started = psutil.Process(sleeper.pid).create_time()
    (run.agents / "node-0.json").write_text(json.dumps({"pid": sleeper.pid, "startedAt": started - 60.0}))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert list(running_agents(run)) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_that_was_removed_or_replaced_is_noticed(run: RunDir) -> None:
    with claim(run) as lock:
        lock.check_folder()
        run.root.rename(run.root.with_name("moved"))
        with pytest.raises(JobFailedError, match=f"{run.root} was removed while the job ran"):
            lock.check_folder()
        run.root.mkdir()
        run.supervisor_lock.touch()
        assert lock.folder_was_removed()


def test_the_lock_is_taken_past_somebody_who_only_looks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(run):
        pass
    looks = run.supervisor_lock.open()
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr("megascale.cli.run_folder.time.sleep", lambda _s: looks.close())
    with claim(run) as lock:
        assert lock.owned
