"""What a node's kernel log says about its hardware, from a file and from a device that gives records."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megascale.agent import kernel_log as module
from megascale.agent.kernel_log import KernelLog
from megascale.core.contract.policy import LogRuleSpec
from megascale.core.rules import rule_set
from megascale.rpc import megascale_pb2 as pb

MEMORY = "EDAC MC1: 1 UE memory read error on CPU_SrcID#1_MC#0_Chan#1_DIMM#0"


def xid(number: int, device: int = 0x3B) -> str:
    return f"NVRM: Xid (PCI:0000:{device:02x}:00): {number}, pid=1, DBE"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.touch()
    return path


@pytest.fixture
def log(path: Path) -> Iterator[KernelLog]:
    log = KernelLog(path)
    yield log
    log.close()


@pytest.fixture
def append(path: Path) -> Callable[[str], None]:
    def write(text: str) -> None:
        with path.open("a") as handle:
            handle.write(text)

    return write


def test_an_event_says_what_happened_when(log: KernelLog, append: Callable[[str], None]) -> None:
    append(f"4,1250,98374623,-,caller=T1;{MEMORY}\n")
    (event,) = log.new_events()
    assert event.at == pytest.approx(time.time(), abs=10.0)
    event.ClearField("at")
    assert event == pb.HardwareEvent(
        sign="memory", text=MEMORY, rule="machine-check", category="host", action=event.action
    )
    assert event.action not in ("", "none")
    assert log.new_events() == []


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        (xid(48), "xid"),
        ("nvidia-nvlink: NVLink fatal error detected on link 3", "nvlink"),
        ("NVRM: GPU at PCI:0000:3b:00: HW thermal slowdown: Active", "thermal"),
        ("blk_update_request: I/O error, dev nvme0n1, sector 1234", "disk"),
        ("mlx5_core 0000:1b:00.0 eth4: Link down", "nic"),
    ],
)
def test_a_line_is_the_sign_of_a_device(
    log: KernelLog, append: Callable[[str], None], line: str, sign: str
) -> None:
    append(f"3,1,1,-;{line}\n")
    assert [event.sign for event in log.new_events()] == [sign]


def test_a_kernel_log_is_only_read_without_waiting_and_is_not_inherited_by_ranks(log: KernelLog) -> None:
    assert fcntl.fcntl(log._descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert not os.get_blocking(log._descriptor)
    assert not os.get_inheritable(log._descriptor)


def test_a_line_without_an_end_is_kept_up_to_2000_bytes(
    log: KernelLog, append: Callable[[str], None]
) -> None:
    append("y" * 5000)
    assert log.new_events() == []
    append(f"4,1,1,-;{xid(79)}")
    assert log.new_events() == []
    assert len(log._rest) == 2000
    append("\n")
    assert [event.code for event in log.new_events()] == [79]


def test_bytes_that_are_no_text_do_not_hide_a_line(log: KernelLog, path: Path) -> None:
    path.write_bytes(b"\xff\n4,1,1,-;\xff " + xid(79).encode() + b"\n")
    assert [(event.code, event.text) for event in log.new_events()] == [(79, f"\ufffd {xid(79)}")]


def test_half_a_line_waits_for_its_other_half(log: KernelLog, append: Callable[[str], None]) -> None:
    append(f"4,1,1,-;{xid(79)[:20]}")
    assert log.new_events() == []
    append(f"{xid(79)[20:]}\n")
    assert [event.code for event in log.new_events()] == [79]


def test_the_same_line_is_news_again_after_ten_seconds(
    log: KernelLog, append: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    found = []
    for now in (100.0, 109.9, 110.0):  # noqa: B007
        append(f"4,1,1,-;{xid(79)}\n")
        found.append(len(log.new_events()))
    assert found == [1, 0, 1]


def test_other_devices_and_other_signs_are_news(log: KernelLog, append: Callable[[str], None]) -> None:
    append(f"4,1,1,-;{xid(79)}\n4,1,1,-;{xid(79, 0x3C)}\n4,1,1,-;{xid(48)}\n")
    assert [event.code for event in log.new_events()] == [79, 79, 48]


@pytest.mark.parametrize(
    ("category", "action", "events"), [("gpu", "alert", 1), ("gpu", "none", 0), ("data", "alert", 0)]
)
def test_only_what_a_device_has_and_calls_for_something_is_told(
    path: Path, append: Callable[[str], None], category: str, action: str, events: int
) -> None:
    rules = rule_set((LogRuleSpec("mine", pattern="a fan stopped", category=category, action=action),))
    log = KernelLog(path, rules)
    append("3,1,1,-;a fan stopped\n")
    assert [event.rule for event in log.new_events()] == ["mine"] * events
    log.close()


def test_a_flood_is_bounded_and_what_comes_after_it_is_heard(
    log: KernelLog, append: Callable[[str], None]
) -> None:
    append("".join(f"4,1,1,-;{xid(48, device)}\n" for device in range(20)))
    assert len(log.new_events()) == 16
    append(f"4,1,1,-;{xid(79)}\n")
    assert [event.code for event in log.new_events()] == [79]


def test_a_device_gives_one_record_for_each_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[bytes | type[OSError]] = [
        f"4,1,1,-;{xid(79)}\n SUBSYSTEM=pci\n".encode(),
        BrokenPipeError,
        f"4,2,1,-;{xid(48)}\n".encode(),
        BlockingIOError,
        *[f"6,{n},1,-;nothing of interest\n".encode() for n in range(300)],
        f"4,3,1,-;{xid(74)}\n".encode(),
        BlockingIOError,
    ]

    def read(descriptor: int, size: int) -> bytes:
        assert (descriptor, size) == (log._descriptor, 64 * 1024)
        record = records.pop(0)
        if isinstance(record, bytes):
            return record
        raise record

    monkeypatch.setattr(module.stat, "S_ISCHR", lambda _mode: True)
    log = KernelLog(path)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "read", read)
        assert [event.code for event in log.new_events()] == [79, 48]
        assert log.new_events() == []
        assert len(records) == 300 - 256 + 2
        assert [event.code for event in log.new_events()] == [74]
    log.close()


def test_a_log_that_was_closed_is_empty_and_may_be_closed_again(path: Path) -> None:
    log = KernelLog(path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    log.close()
    log.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before - 1
    assert log.new_events() == []


def test_why_a_kernel_log_is_not_followed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KernelLog(tmp_path / "absent")
    said = "No such file or directory; hardware events of this node are not seen"
    assert caplog.messages == [f"{tmp_path / 'absent'}: {said}"]
