"""What of the zygote runs outside of forked ranks: requests, what forbids a fork, launches as JSON."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megascale.agent import zygote as module
from megascale.agent.zygote import (
    interface_environment,
    launch_from_json,
    launch_to_json,
    listener_on,
    torchrun_environment,
    unforkable,
)
from megascale.agent.zygote_client import Zygote
from megascale.core.contract.lineage import Commit
from megascale.engine.context import RankLaunch

LAUNCH = RankLaunch(
    job="q",
    spec={"spec": {"steps": 7}},
    term=3,
    attempt=4,
    rank=5,
    world_size=12,
    local_rank=1,
    local_world_size=2,
    node="n2",
    node_rank=2,
    store_host="10.0.0.1",
    store_port=2900,
    run_dir=Path("runs/q"),
    rank_file=Path("runs/q/ranks/n2-1.rank"),
    resume=Commit(20, 3),
    lineage={1: None, 3: Commit(10, 1), 4: Commit(20, 3)},
    tier="memory",
    save_every_steps=9,
    snapshot_folders=(Path("/dev/shm/q"), Path("runs/q/snapshots")),
    interface="eth7",
)


def test_a_launch_survives_its_way_to_the_zygote() -> None:
    assert launch_from_json(json.loads(json.dumps(launch_to_json(LAUNCH)))) == LAUNCH
    first = launch_from_json({**launch_to_json(LAUNCH), "resume": None})
    assert first.resume is None
    assert launch_to_json(LAUNCH)["rank_file"] == "runs/q/ranks/n2-1.rank"


def test_ranks_see_what_torchrun_sets() -> None:
    assert torchrun_environment(LAUNCH) == {
        "RANK": "5",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "2900",
        "TORCHELASTIC_RESTART_COUNT": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MEGASCALE_RANK_FILE": "runs/q/ranks/n2-1.rank",
    }
    assert interface_environment(LAUNCH) == {"GLOO_SOCKET_IFNAME": "eth7"}


@pytest.fixture
def own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what /proc says of this process: how many threads it has and which files it has open."""

    def use(threads: int, *files: str) -> None:
        proc = tmp_path / "proc" / "self"
        for thread in range(threads):
            (proc / "task" / str(thread)).mkdir(parents=True)
        (proc / "fd").mkdir()
        (proc / "fd" / "0").touch()  # closed between the listing and the look at it
        for number, file in enumerate(files, 1):
            (proc / "fd" / str(number)).symlink_to(file)
        monkeypatch.setattr(module, "Path", lambda path: tmp_path / str(path).lstrip("/"))

    return use


def test_a_process_of_one_thread_without_a_gpu_may_fork(own_process: Callable[..., None]) -> None:
    own_process(1, "/dev/null", "/data/dev/nvidia0")
    assert unforkable() == ""


def test_threads_forbid_a_fork(own_process: Callable[..., None]) -> None:
    own_process(2)
    assert unforkable() == "the zygote has 2 threads; a fork would copy locks that nobody releases"


def test_an_open_gpu_forbids_a_fork(own_process: Callable[..., None]) -> None:
    own_process(1, "/dev/null", "/dev/nvidia0")
    assert unforkable() == "the zygote has /dev/nvidia0 open; a forked CUDA context does not work"


@pytest.mark.parametrize(
    ("problem", "op", "answer"),
    [
        ("", "rank", {"pid": 77}),
        ("", "store", {"pid": 78, "port": 2900}),
        ("it has threads", "rank", {"error": "it has threads"}),
        ("it has threads", "store", {"error": "it has threads"}),
    ],
)
def test_a_request_is_answered_with_what_was_forked_or_why_not(
    monkeypatch: pytest.MonkeyPatch, problem: str, op: str, answer: dict[str, Any]
) -> None:
    asked: list[Any] = []
    connection, request = cast(Any, object()), {"op": op}

    def fork(result: Any) -> Callable[..., Any]:
        return lambda *arguments: (asked.append(arguments), result)[1]

    monkeypatch.setattr(module, "unforkable", lambda: problem)
    monkeypatch.setattr(module, "_fork_rank", fork(77))
    monkeypatch.setattr(module, "_fork_store", fork({"pid": 78, "port": 2900}))
    assert module._serve(connection, request) == answer
    assert asked == ([] if problem else [(connection, request)])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_store_listens_on_its_own_address_only(host: str) -> None:
    with listener_on(host) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == host
        socket.create_connection((host, port), 5.0).close()
        other = "127.0.0.2" if host == "127.0.0.1" else "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, port), 5.0)


class LastWords:
    """A rank file that keeps the report of an exit."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.write_exit_report = self.reports.append


def run(monkeypatch: pytest.MonkeyPatch, rank: Callable[[], int]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code of a rank whose program is `rank`, and what it left in its file."""
    file = LastWords()

    def run_rank(launch: RankLaunch, rank_file: LastWords) -> int:
        assert (launch, rank_file) == (LAUNCH, file)
        return rank()

    monkeypatch.setitem(sys.modules, "megascale.engine.rank", cast(Any, SimpleNamespace(run_rank=run_rank)))
    return module._run(LAUNCH, cast(Any, file)), file.reports


def test_a_rank_ends_with_the_code_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, lambda: 76) == (76, [])


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_rank_that_raises_leaves_its_error_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def raises() -> int:
        error = kind("a shard is damaged")
        error.step, error.tier = 20, "memory"  # type: ignore[attr-defined]
        raise error

    report = {
        "type": kind.__name__,
        "message": "a shard is damaged",
        "detail": {"step": 20, "tier": "memory"},
    }
    assert run(monkeypatch, raises) == (1, [report])
    assert f"{kind.__name__}: a shard is damaged" in capsys.readouterr().err


def test_the_attempt_of_an_error_is_left_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> int:
        error = OSError(28, "No space left")
        error.attempt = 3  # type: ignore[attr-defined]
        raise error

    ((report,),) = run(monkeypatch, raises)[1:]
    assert report["detail"] == {"attempt": 3}


def test_an_agent_asks_its_zygote_for_ranks_and_stores(tmp_path: Path) -> None:
    told = replace(LAUNCH, rank_file=tmp_path / "ranks" / "n2-1.rank")
    asked: list[dict[str, Any]] = []

    async def ask(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"pid": "77", "port": "2900"}

    async def scenario() -> None:
        zygote = Zygote(engine=True)
        zygote._ask = ask  # type: ignore[method-assign]
        assert await zygote.fork_rank(told, Path("logs/rank-5.log")) == 77
        assert await zygote.fork_store("10.0.0.1") == (77, 2900)

    asyncio.run(scenario())
    rank, store = asked
    assert rank == {"op": "rank", "log": "logs/rank-5.log", "launch": str(tmp_path / "ranks" / "n2-1.json")}
    assert launch_from_json(json.loads(Path(rank["launch"]).read_text())) == told
    assert store == {"op": "store", "host": "10.0.0.1"}
