"""What an agent does for its node and its pod beside running ranks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest

from megascale.agent import kernel_log
from megascale.agent.__main__ import _parser, config_of
from megascale.agent.config import AgentConfig
from megascale.agent.kernel_log import KernelLog
from megascale.agent.log_uploader import LogUploader
from megascale.agent.reaper import Reaper
from megascale.errors import InputError
from megascale.observe.rundir import RunDir

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."
KMSG = f"4,1250,98374623,-;{XID}\n"


def test_hardware_lines_of_the_kernel_log_become_events(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("6,1,1,-;an old line: " + XID + "\n")
    log = KernelLog(path)
    assert log.new_events() == []
    with path.open("a") as handle:
        handle.write("6,2,5,-;usb 1-1: new device\n" + KMSG)
        handle.write("3,3,6,-;EDAC MC1: 1 UE memory read error on CPU_SrcID#1_MC#0_Chan#1_DIMM#0\n")
        handle.write("4,4,7,-;pcieport 0000:60:01.0: AER: Uncorrected (Fatal) error received: 0000:61:00.0\n")
        handle.write("4,5,8,-;mlx5_core 0000:1b:00.0 eth4: Link down\n")
    events = log.new_events()
    assert [(event.sign, event.rule, event.category) for event in events] == [
        ("xid", "xid-79", "gpu"),
        ("memory", "machine-check", "host"),
        ("pcie", "pcie-error", "host"),
        ("nic", "link-down", "network"),
    ]
    assert (events[0].code, events[0].action, events[0].text) == (79, "replace_node", XID)
    log.close()


def test_a_line_that_repeats_is_told_once_and_floods_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.touch()
    log = KernelLog(path)
    with path.open("a") as handle:
        handle.write(KMSG * 50)
        handle.writelines(f"4,1,1,-;NVRM: Xid (PCI:0000:{n:02x}:00): 48, pid=1, DBE\n" for n in range(100))
    assert len(log.new_events()) == 16
    log.close()


def test_no_kernel_log_is_said_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = KernelLog(tmp_path / "absent")
    assert log.new_events() == []
    assert "hardware events of this node are not seen" in caplog.text


def test_a_kernel_log_that_cannot_be_read_any_more_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kmsg"
    path.touch()
    log = KernelLog(path)

    def broken(*_arguments: int) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(kernel_log.os, "read", broken)
        assert log.new_events() == []
    with path.open("a") as handle:
        handle.write(KMSG)
    assert log.new_events() == []
    assert caplog.text.count("the kernel log cannot be read any more") == 1


def test_children_that_nobody_waits_for_are_reaped_and_others_are_not() -> None:
    async def scenario() -> tuple[int, int | None]:
        reaper = Reaper()
        reaper.watch()
        stray = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)  # noqa: ASYNC221
        waited_for = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        code = await waited_for.wait()
        for _ in range(400):
            if not Path(f"/proc/{stray}").exists():
                break
            await asyncio.sleep(0.02)
        reaper.close()
        return stray, code

    stray, code = asyncio.run(scenario())
    assert not Path(f"/proc/{stray}").exists()
    assert code == 7


def test_logs_and_step_records_are_copied_on(tmp_path: Path) -> None:
    run, store = RunDir(tmp_path / "work"), tmp_path / "store"
    log = run.rank_log(3, 1)
    log.parent.mkdir(parents=True)
    (run.root / "logs" / "agent-node-1.log").write_text("not a rank's\n")
    log.write_text("one\n")
    run.metrics_file.write_text('{"step": 1}\n')
    uploader = LogUploader(run, str(store), "q-1-0")
    asyncio.run(uploader.close())
    with log.open("a") as handle:
        handle.write("two\n")
    # the next agent of the pod goes on where this one was
    asyncio.run(LogUploader(run, str(store), "q-1-0").close())
    assert (store / "logs" / "attempt-3" / "rank-1.log").read_text() == "one\ntwo\n"
    assert (store / "metrics" / "q-1-0.jsonl").read_text() == '{"step": 1}\n'
    assert sorted(path.name for path in store.iterdir()) == ["logs", "metrics"]


def test_a_store_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path / "work")
    run.root.mkdir()
    run.metrics_file.write_text('{"step": 1}\n')
    (tmp_path / "store").write_text("a file")
    uploader = LogUploader(run, str(tmp_path / "store"), "q-1-0")
    for _ in range(2):
        asyncio.run(uploader.close())
    assert caplog.text.count("are not copied") == 1


def test_flags_of_a_pod_and_defaults_of_a_local_run() -> None:
    local = config_of(_parser().parse_args(["runs/q", "node-1"]))
    assert local == AgentConfig.local(Path("runs/q"), "node-1")
    assert local.interface.startswith("lo")
    text = "/work n7 --job-file /job/job.yaml --driver-file /d/driver.json --token-file /t/token"
    text += " --ca-file /job/ca.crt --server-name q.ns.driver.megascale --host 127.0.0.1 --pod q-0-1"
    text += " --snapshot-root /memory"
    config = config_of(_parser().parse_args(text.split()))
    assert (config.node, config.pod, str(config.job_file)) == ("n7", "q-0-1", "/job/job.yaml")
    assert config.trust is not None
    assert config.trust.server_name == "q.ns.driver.megascale"
    assert str(config.kernel_log) == "/dev/kmsg"


def test_an_address_that_no_interface_has_is_refused() -> None:
    config = config_of(_parser().parse_args(["runs/q", "node-1", "--host", "203.0.113.77"]))
    assert dataclasses.replace(config, host="127.64.3.9").interface.startswith("lo")
    with pytest.raises(InputError, match=r"--host 203\.0\.113\.77"):
        _ = config.interface
