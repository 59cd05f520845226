"""Where an agent lives, and which network interface it is reached through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megascale.agent import __main__ as main_module
from megascale.agent import config as module
from megascale.agent.__main__ import _parser, config_of
from megascale.agent.agent import RESTART_ME
from megascale.agent.config import AgentConfig
from megascale.checkpoint.snapshot_folders import SHARED_MEMORY
from megascale.errors import InputError, MegascaleError
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust

WITHOUT_AN_ADDRESS = [("02:42:ac:11:00:02", None), ("not an address", "255.0.0.0")]


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the network interfaces of this node: name -> (address, netmask) each."""

    def use(**found: list[tuple[str, str | None]]) -> None:
        entries = {
            name: [SimpleNamespace(address=address, netmask=mask) for address, mask in addresses]
            for name, addresses in found.items()
        }
        monkeypatch.setattr(module.psutil, "net_if_addrs", lambda: entries)

    return use


def interface_of(host: str) -> str:
    config = AgentConfig.local(Path("runs/q"), "n0")
    return AgentConfig(
        config.run, "n0", config.job_file, config.driver_file, config.token_file, host
    ).interface


def test_an_agent_of_a_local_run_finds_its_files_in_the_run_folder() -> None:
    config, run = AgentConfig.local(Path("runs/q"), "n3"), RunDir(Path("runs/q"))
    assert config == AgentConfig(run, "n3", run.job_file, run.driver_file, run.agent_token_file("n3"))
    assert (config.host, config.trust, config.pod, config.kernel_log) == ("127.0.0.1", None, "", None)
    assert (config.snapshot_root, config.grace_s) == (SHARED_MEMORY, 100.0)


def test_every_flag_of_a_pod_is_taken_over() -> None:
    flags = {
        "job-file": "/job/job.yaml",
        "driver-file": "/d/driver.json",
        "token-file": "/t/token",
        "ca-file": "/job/ca",
        "server-name": "q.driver",
        "host": "10.0.0.4",
        "pod": "q-0-1",
        "snapshot-root": "/memory",
        "kernel-log": "/log",
        "grace": "7",
    }
    arguments = ["/pod", "n7", *(f"--{name}={value}" for name, value in flags.items())]
    assert config_of(_parser().parse_args(arguments)) == AgentConfig(
        run=RunDir(Path("/pod")),
        node="n7",
        job_file=Path("/job/job.yaml"),
        driver_file=Path("/d/driver.json"),
        token_file=Path("/t/token"),
        host="10.0.0.4",
        trust=Trust(Path("/job/ca"), "q.driver"),
        pod="q-0-1",
        snapshot_root=Path("/memory"),
        kernel_log=Path("/log"),
        grace_s=7.0,
    )


def test_a_driver_without_a_name_of_its_own_is_trusted_by_its_address() -> None:
    arguments = _parser().parse_args(["/pod", "n7", "--ca-file", "/job/ca"])
    assert config_of(arguments).trust == Trust(Path("/job/ca"), "")


def test_an_interface_with_the_address_comes_before_one_with_the_network(
    interfaces: Callable[..., None],
) -> None:
    interfaces(
        wide=[("10.0.0.1", "255.0.0.0")],
        eth0=[*WITHOUT_AN_ADDRESS, ("10.0.0.4", "255.255.255.0")],
        exact=[("10.0.0.5", None)],
    )
    assert interface_of("10.0.0.5") == "exact"
    assert interface_of("10.0.0.4") == "eth0"
    assert interface_of("10.9.9.9") == "wide"


def test_addresses_of_another_version_are_no_match(interfaces: Callable[..., None]) -> None:
    interfaces(four=[("0.0.0.1", "0.0.0.0")], six=[("fe80::1%six", "ffff:ffff:ffff:ffff::")])
    assert interface_of("fe80::2") == "six"
    assert interface_of("10.0.0.1") == "four"
    with pytest.raises(
        InputError, match="--host fe81::1: no network interface of this node has that address"
    ):
        interface_of("fe81::1")


def test_the_help_says_of_every_flag_what_it_is() -> None:
    parser = _parser()
    texts = {action.dest: action.help or "" for action in parser._actions if action.dest != "help"}
    assert set(texts) == {
        "run_dir", "node", "job_file", "driver_file", "token_file", "ca_file", "server_name", "host", "pod",
        "snapshot_root", "kernel_log", "grace",
    }  # fmt: skip
    for dest, text in texts.items():
        assert text[:1].islower(), dest
        assert text[-2:-1].islower() or text.endswith((")", "SIGTERM")), dest
    local = AgentConfig.local(Path("RUN_DIR"), "NODE")
    assert f"(default: {local.job_file})" in texts["job_file"]
    assert f"(default: {local.driver_file})" in texts["driver_file"]
    assert f"(default: {local.token_file})" in texts["token_file"]
    assert f"(default: {SHARED_MEMORY})" in texts["snapshot_root"]
    assert f"(in a pod: {module.KERNEL_LOG})" in texts["kernel_log"]
    assert parser.prog == "python -m megascale.agent"
    assert parser.epilog == f"Exit codes: 0 released, {RESTART_ME} start me again, else failed."
    assert "\nin a pod:\n" in parser.format_help()
    assert "Runs the ranks of one node and reports to the job's driver." in parser.format_help()


def run_main(
    monkeypatch: pytest.MonkeyPatch, *flags: str, ends: int | MegascaleError
) -> tuple[int, list[Any]]:
    """The exit code, and what the agent and its logs were set up with."""
    seen: list[Any] = []

    class Recorded:
        def __init__(self, config: AgentConfig, context: LogContext) -> None:
            seen.extend((config, context))

        async def run(self) -> int:
            if isinstance(ends, MegascaleError):
                raise ends
            return ends

    monkeypatch.setattr(main_module, "Agent", Recorded)
    monkeypatch.setattr(main_module, "configure_logs", lambda *given, **named: seen.append((*given, named)))
    monkeypatch.setattr(main_module.sys, "argv", ["agent", "runs/q", "n3", *flags])
    return main_module.main(), seen


@pytest.mark.parametrize(("flags", "as_json"), [((), False), (("--pod", "q-0-1"), True)])
def test_an_agent_ends_with_its_own_code_and_its_lines_name_its_node(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], as_json: bool
) -> None:
    code, (logs, config, context) = run_main(monkeypatch, *flags, ends=RESTART_ME)
    assert code == RESTART_ME
    assert config == config_of(_parser().parse_args(["runs/q", "n3", *flags]))
    assert (context.component, context.node) == ("agent", "n3")
    assert logs == (context, {"as_json": as_json})


def test_an_agent_that_cannot_go_on_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = InputError("the manifest is not good")
    assert run_main(monkeypatch, ends=error)[0] == error.exit_code != 0
    assert caplog.messages == ["the manifest is not good"]
