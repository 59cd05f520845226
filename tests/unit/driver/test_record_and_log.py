"""Record and event log of a local run as files: what is written, when it is on the disk, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.eventlog import Entry, Header, entry_line, header_line
from megascale.driver import log as log_module
from megascale.driver.listener import LocalListener, bind, is_loopback
from megascale.driver.log import EventLog
from megascale.driver.ports import NotAdmittedError
from megascale.driver.record import RECORD_VERSION, LocalRecord, read_record
from megascale.errors import FencedError, InputError, UnreachableError
from megascale.observe.rundir import RunDir, log_part

HEADER = Header("j", Policy(), None)
QUIET = Entry(10.0, ev.Tick(), ())
BUSY = Entry(11.0, ev.DriverStarted(1), (fx.Page("e-1", "look here"),))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_claim_is_on_the_disk_before_anything_is_decided(run: RunDir) -> None:
    async def scenario() -> None:
        record = LocalRecord(run, "j")
        assert read_record(run) is None
        claim = await record.claim()
        assert (claim.term, claim.snapshot, dict(claim.revisions)) == (1, None, {})
        expected = {"version": RECORD_VERSION, "job": "j", "term": 1, "core": None}
        assert json.loads(run.record_file.read_text()) == expected
        assert run.driver_lock.stat().st_mode & 0o777 == 0o644 & ~_umask()
        await record.write({"attempt": 4}, {"r1": "one"})
        assert read_record(run) == {**expected, "core": {"attempt": 4}}
        await record.close()
        successor = LocalRecord(run, "j")
        claim = await successor.claim()
        assert (claim.term, claim.snapshot, dict(claim.revisions)) == (2, {"attempt": 4}, {"r1": "one"})
        assert read_record(run) == {**expected, "term": 2, "core": {"attempt": 4}}
        await successor.close()

    asyncio.run(scenario())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_record_that_is_held_is_said_to_be(run: RunDir) -> None:
    async def scenario() -> None:
        await LocalRecord(run, "j").claim()
        with pytest.raises(FencedError, match=f"another driver holds {run.driver_lock}"):
            await LocalRecord(run, "j").claim()

    asyncio.run(scenario())


def test_a_manifest_is_written_once_and_repaired_when_its_file_was_changed(run: RunDir) -> None:
    def inodes() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in run.revisions.iterdir()}

    async def scenario() -> None:
        record = LocalRecord(run, "j")
        await record.claim()
        manifests = {"r1": "one", "r2": "two"}
        await record.write({}, manifests)
        before = inodes()
        await record.write({}, manifests)
        assert inodes() == before
        (run.revisions / "r1.json").write_bytes(b"\xffone")
        await record.write({}, manifests)
        await record.close()
        assert {path.stem: path.read_text() for path in run.revisions.iterdir()} == manifests
        assert inodes()["r2.json"] == before["r2.json"]

    asyncio.run(scenario())


def test_a_folder_among_the_manifests_is_left_alone(run: RunDir) -> None:
    async def scenario() -> None:
        (run.revisions / "abc.json").mkdir(parents=True)
        record = LocalRecord(run, "j")
        assert dict((await record.claim()).revisions) == {}
        await record.write({}, {"r1": "one"})
        await record.close()
        assert {path.name for path in run.revisions.iterdir()} == {"abc.json", "r1.json"}

    asyncio.run(scenario())


def test_what_a_record_cannot_be_read_for_is_said(run: RunDir) -> None:
    run.record_file.write_text("{")
    with pytest.raises(InputError) as caught:
        read_record(run)
    assert str(caught.value) == f"{run.record_file} is damaged; start over with --fresh"
    run.record_file.write_text('{"version": 99}')
    with pytest.raises(InputError) as caught:
        read_record(run)
    assert str(caught.value) == (
        f"{run.record_file} is version 99, this program reads 1; run it with the version of the program that "
        "wrote it, or a later one"
    )


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\xff\xfe{", ""),
        (b"[1]", ""),
        (b'{"version": 1, "core": null}', ": term is missing, expected a whole number >= 1"),
        (b'{"version": 1, "term": "x", "core": null}', ": term is 'x', expected a whole number >= 1"),
        (b'{"version": 1, "term": true, "core": null}', ": term is True, expected a whole number >= 1"),
        (b'{"version": 1, "term": 0, "core": null}', ": term is 0, expected a whole number >= 1"),
        (b'{"version": 1, "term": 1}', ": core is missing, expected a mapping or null"),
        (b'{"version": 1, "term": 1, "core": [1]}', ": core is [1], expected a mapping or null"),
        (b'{"version": 1, "term": 1, "core": {"lineage": 7}}', ": core: lineage: expected dict, got 7"),
        (
            b'{"version": 1, "term": 1, "core": {"incidents": [1]}}',
            ": core: incidents: expected Incident, got 1",
        ),
        (
            b'{"version": 1, "term": 1, "core": {"excluded": "x"}}',
            ": core: excluded: expected dict, got 'x'",
        ),
    ],
)
def test_a_damaged_record_is_named(run: RunDir, raw: bytes, what: str) -> None:
    run.record_file.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        read_record(run)
    assert str(caught.value) == f"{run.record_file} is damaged{what}; start over with --fresh"


def test_a_long_value_in_a_damaged_record_is_cut(run: RunDir) -> None:
    run.record_file.write_text(json.dumps({"version": 1, "term": "x" * 100_000, "core": None}))
    with pytest.raises(InputError) as caught:
        read_record(run)
    assert len(str(caught.value)) < 1000


def test_a_stored_manifest_that_is_no_text_does_not_keep_a_driver_from_starting(run: RunDir) -> None:
    async def scenario() -> None:
        run.revisions.mkdir()
        (run.revisions / "r1.json").write_bytes(b"\xff\xfe")
        claim = await LocalRecord(run, "j").claim()
        assert dict(claim.revisions) == {"r1": "\ufffd\ufffd"}

    asyncio.run(scenario())


class Disk:
    """Notes in which order the log is written and brought to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        write = os.write

        def noted_write(descriptor: int, raw: bytes) -> int:
            self.calls.append("write")
            return write(descriptor, raw)

        monkeypatch.setattr(log_module.os, "write", noted_write)
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(log_module.os, name, lambda _descriptor, name=name: self.calls.append(name))


def test_only_what_is_acted_on_has_to_be_on_the_disk_first(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    async def scenario() -> None:
        log = EventLog(run)
        await log.begin(HEADER, 1)
        assert disk.calls == ["write", "fdatasync"]
        await log.append(QUIET)
        assert disk.calls == ["write", "fdatasync", "write"]
        await log.append(BUSY)
        assert disk.calls[3:] == ["write", "fdatasync"]
        await log.close()

    asyncio.run(scenario())
    lines = run.events_file.read_text().splitlines()
    assert lines == [header_line(HEADER), entry_line(QUIET), entry_line(BUSY)]


def test_a_full_file_is_followed_by_one_that_begins_with_a_header(run: RunDir) -> None:
    """The first and the newest two files stay; a successor goes on with the newest."""

    def files() -> dict[str, list[str]]:
        return {path.name: path.read_text().splitlines() for path in run.root.glob("events*")}

    async def scenario() -> None:
        log = EventLog(run, part_bytes=len(header_line(HEADER)) + 10, parts=3)
        for _ in range(5):
            await log.begin(HEADER, 1)
            assert not log.is_full
            await log.append(QUIET)
            assert log.is_full
            await log.append(BUSY)
        await log.close()
        log = EventLog(run, part_bytes=1 << 20)
        await log.begin(HEADER, 2)
        await log.close()

    asyncio.run(scenario())
    part = [header_line(HEADER), entry_line(QUIET), entry_line(BUSY)]
    assert files() == {
        "events.jsonl": part,
        "events.3.jsonl": part,
        "events.4.jsonl": [*part, header_line(HEADER)],
    }


def test_a_next_file_without_room_for_its_header_is_tried_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    async def scenario() -> None:
        log = EventLog(run, part_bytes=10)
        await log.begin(HEADER, 1)
        with monkeypatch.context() as patch:
            patch.setattr(log_module.os, "write", lambda descriptor, raw: write(descriptor, raw[:7]))
            with pytest.raises(OSError, match="the event log could not be written whole"):
                await log.begin(HEADER, 1)
        assert log.is_full
        await log.append(QUIET)
        await log.begin(HEADER, 1)
        await log.close()

    asyncio.run(scenario())
    assert run.events_file.read_text().splitlines() == [header_line(HEADER), entry_line(QUIET)]
    assert log_part(run.events_file, 1).read_text().splitlines() == [header_line(HEADER)]


def test_a_log_that_ends_whole_is_gone_on_with(run: RunDir) -> None:
    run.events_file.write_text("a whole line\n")
    log = EventLog(run)
    asyncio.run(log.close())
    assert run.events_file.read_text() == "a whole line\n"


def test_a_line_that_does_not_fit_is_taken_back(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    async def scenario() -> None:
        log = EventLog(run)
        await log.begin(HEADER, 1)
        with monkeypatch.context() as patch:
            patch.setattr(log_module.os, "write", lambda descriptor, raw: write(descriptor, raw[:7]))
            with pytest.raises(OSError, match="the event log could not be written whole") as caught:
                await log.append(BUSY)
        assert caught.value.errno == 28
        await log.append(QUIET)
        await log.close()

    asyncio.run(scenario())
    assert run.events_file.read_text().splitlines() == [header_line(HEADER), entry_line(QUIET)]


def test_a_line_that_may_not_be_on_the_disk_is_taken_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever appends tries again: the line must not be there twice."""

    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        log = EventLog(run)
        await log.begin(HEADER, 1)
        with monkeypatch.context() as patch:
            patch.setattr(log_module.os, "fdatasync", fails)
            with pytest.raises(OSError, match="No space left"):
                await log.append(BUSY)
        await log.append(BUSY)
        await log.close()

    asyncio.run(scenario())
    assert run.events_file.read_text().splitlines() == [header_line(HEADER), entry_line(BUSY)]


def test_the_log_is_written_in_a_thread_that_is_named_after_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    async def scenario() -> None:
        log = EventLog(run)
        monkeypatch.setattr(
            log, "_append", lambda _line, **_sync: threads.append(threading.current_thread().name)
        )
        await log.begin(HEADER, 1)
        await log.append(QUIET)
        await log.close()

    asyncio.run(scenario())
    assert threads == [str(run.events_file)] * 2


class Server:
    """A server that can or cannot be bound; keeps what it was asked for."""

    def __init__(self, *, port: int = 77, error: Exception | None = None) -> None:
        self.asked: list[Any] = []
        self._port, self._error = port, error

    def add_insecure_port(self, address: str) -> int:
        return self._add(address, None)

    def add_secure_port(self, address: str, credentials: object) -> int:
        return self._add(address, credentials)

    def _add(self, address: str, credentials: object) -> int:
        self.asked.append((address, credentials))
        if self._error is not None:
            raise self._error
        return self._port


CREDENTIALS = object()


@pytest.mark.parametrize(
    ("arguments", "asked", "bound"),
    [
        (("127.0.0.1", None), ("127.0.0.1:0", None), "127.0.0.1:77"),
        (("::1", None, 5), ("[::1]:5", None), "[::1]:77"),
        (("0.0.0.0", CREDENTIALS, 443), ("0.0.0.0:443", CREDENTIALS), "0.0.0.0:77"),
    ],
)
def test_where_a_server_listens(arguments: tuple[Any, ...], asked: tuple[Any, ...], bound: str) -> None:
    server: Any = Server()
    assert bind(server, *arguments) == bound
    assert server.asked == [asked]


def test_what_cannot_be_bound_is_said() -> None:
    server: Any = Server(error=RuntimeError("Address already in use"))
    with pytest.raises(UnreachableError, match=r"^cannot listen on \[::1\]:5: Address already in use$"):
        bind(server, "::1", None, 5)
    with pytest.raises(InputError) as caught:
        bind(server, "10.0.0.1", None)
    assert str(caught.value) == (
        "bind address 10.0.0.1: without TLS only a loopback address is allowed, e.g. 127.0.0.1"
    )
    assert [is_loopback(host) for host in ("127.9.9.9", "::1", "10.0.0.1", "localhost")] == [
        True,
        True,
        False,
        False,
    ]


def test_agents_of_a_local_run_find_its_driver_and_show_its_token(run: RunDir) -> None:
    async def scenario() -> None:
        local = LocalListener(run)
        server = grpc.aio.server()
        assert (await local.open(server)).startswith("127.0.0.1:")
        await server.stop(0)
        await local.announce("127.0.0.1:5", 3)
        announced = json.loads(run.driver_file.read_text())
        assert announced == {"endpoint": "127.0.0.1:5", "pid": os.getpid(), "term": 3}
        token = run.token_file.read_text()
        await local.admit(run.renew_agent_token("n0"), "n0")
        await LocalListener(run).admit(token, "")
        with pytest.raises(NotAdmittedError, match=r"^the token is not this run's$"):
            await local.admit(token + "x", "")

    asyncio.run(scenario())
