"""When and how much of a pod's logs is copied beside the checkpoints."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from megascale.agent import log_uploader as module
from megascale.agent.log_uploader import LogUploader
from megascale.observe.rundir import RunDir, log_part


class Stage:
    """A pod's work folder with a line of metrics, and the store."""

    def __init__(self, folder: Path) -> None:
        self.run, self.store = RunDir(folder / "work"), folder / "store"
        self.run.root.mkdir()
        self.run.metrics_file.write_text("line 1\n")
        self.uploader = LogUploader(self.run, str(self.store), "q-0-1")

    @property
    def copied(self) -> dict[str, str]:
        """File of the store -> its text."""
        paths = [path for path in self.store.rglob("*") if path.is_file()]
        return {path.relative_to(self.store).as_posix(): path.read_text() for path in paths}

    def log(self, attempt: int, rank: int, text: str) -> None:
        path = self.run.rank_log(attempt, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20.0):
            await scenario()

    asyncio.run(main())


def test_the_newest_two_attempts_are_copied(stage: Stage) -> None:
    for attempt in (2, 9, 10):
        for rank in (0, 1):
            stage.log(attempt, rank, f"{attempt}, {rank}\n")
    for part in (2, 9):
        log_part(stage.run.rank_log(10, 0), part).write_text(f"part {part}\n")
    (stage.run.logs(10) / "other.log").write_text("not a rank's\n")
    asyncio.run(stage.uploader.close())
    assert stage.copied == {
        "logs/attempt-9/rank-0.log": "9, 0\n",
        "logs/attempt-9/rank-1.log": "9, 1\n",
        "logs/attempt-10/rank-0.log": "10, 0\n",
        "logs/attempt-10/rank-0.2.log": "part 2\n",
        "logs/attempt-10/rank-1.log": "10, 1\n",
        "metrics/q-0-1.jsonl": "line 1\n",
    }


def test_a_round_copies_a_piece_of_each_file_up_to_a_limit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", 4)
    monkeypatch.setattr(module, "_FILE_BYTES", 10)
    stage.log(1, 0, "abcdefghijklmn")
    stage.run.metrics_file.unlink()
    found = []
    for _ in range(4):
        asyncio.run(stage.uploader.close())
        found.append(stage.copied["logs/attempt-1/rank-0.log"])
    assert found == ["abcd", "abcdefgh", "abcdefghij", "abcdefghij"]


def test_a_file_with_nothing_in_it_is_not_made_in_the_store(stage: Stage) -> None:
    stage.run.metrics_file.write_text("")
    asyncio.run(stage.uploader.close())
    assert stage.copied == {}


def test_files_are_copied_when_asked_and_after_every_period(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD_S", 3600.0)

    async def scenario() -> None:
        copies: asyncio.Queue[None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        stage.uploader._copy_all = lambda: loop.call_soon_threadsafe(copies.put_nowait, None)  # type: ignore[assignment,return-value]
        serving = asyncio.create_task(stage.uploader.serve())
        await asyncio.sleep(0)
        assert copies.empty()
        stage.uploader.flush_soon()
        await copies.get()
        await asyncio.sleep(0)
        assert copies.empty()
        monkeypatch.setattr(module, "PERIOD_S", 0.001)
        stage.uploader.flush_soon()
        for _ in range(3):
            await copies.get()
        serving.cancel()

    play(scenario)


def test_a_store_that_hangs_is_not_waited_for_and_not_called_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.05)
    go, began = threading.Event(), list[str]()

    def hangs(uri: str) -> None:
        began.append(uri)
        go.wait(20.0)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "open_storage", hangs)

    async def scenario() -> None:
        try:
            for _ in range(2):
                await stage.uploader.close()
            assert began == [str(stage.store)]
        finally:
            go.set()
            await stage.uploader._store.call(
                lambda: None
            )  # what hung has ended, and is in no other test's log

    play(scenario)


def test_a_store_that_fails_again_after_it_was_back_is_said_again(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        shutil.rmtree(stage.store, ignore_errors=True)
        stage.store.write_text("a file")
        asyncio.run(stage.uploader.close())
        stage.store.unlink()
        asyncio.run(stage.uploader.close())
    said = f"logs and step records are not copied to {stage.store}: "
    assert [message.startswith(said) and "not a folder" in message for message in caplog.messages] == [
        True
    ] * 2
    assert stage.copied == {"metrics/q-0-1.jsonl": "line 1\n"}


HUNG = """
import asyncio, sys, threading
from pathlib import Path
from megascale.agent import log_uploader
from megascale.observe.rundir import RunDir

log_uploader._CLOSE_S = 0.05
log_uploader.open_storage = lambda uri: threading.Event().wait()
asyncio.run(log_uploader.LogUploader(RunDir(Path(sys.argv[1])), sys.argv[1], "q-0-1").close())
"""


def test_a_store_that_hangs_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HUNG, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0
