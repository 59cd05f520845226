"""How fast a node computes, measured by a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megascale.agent import gemm_benchmark as module
from megascale.agent.gemm_benchmark import node_speed


@pytest.mark.multiprocess
def test_this_node_has_a_speed_unless_there_is_no_time() -> None:
    async def scenario() -> tuple[float, float]:
        return await node_speed(0.05, 90.0), await node_speed(0.05, 0.01)

    found, none = asyncio.run(scenario())
    assert found > 0.1
    assert none == 0.0


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in the interpreter's place; returns where it notes its arguments."""
    program, noted = tmp_path / "python", tmp_path / "arguments"

    def use(script: str) -> Path:
        program.write_text(f'#!/bin/sh\necho "$@" > {noted}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(program))
        return noted

    return use


def test_the_measurement_is_a_process_that_prints_its_figure(
    python: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    noted = python("cat; echo noise >&2; echo 7.5")
    assert asyncio.run(node_speed(0.25, 20.0)) == 7.5
    assert noted.read_text() == "-m megascale.agent.gemm_benchmark 0.25\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("script", ["echo no figure", "exit 1"])
def test_a_measurement_that_fails_is_no_speed(python: Callable[[str], Path], script: str) -> None:
    python(script)
    assert asyncio.run(node_speed(0.25, 20.0)) == 0.0


def test_a_measurement_that_hangs_is_ended(python: Callable[[str], Path], tmp_path: Path) -> None:
    python(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    assert asyncio.run(node_speed(0.25, 1.0)) == 0.0
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_measurement_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError):
        asyncio.run(node_speed(0.25, 20.0))


@pytest.mark.parametrize(
    ("devices", "speed", "asked"), [(0, 5.0, ["cpu"]), (3, 2.0, ["cuda:0", "cuda:1", "cuda:2"])]
)
def test_a_node_is_as_fast_as_its_slowest_device(
    monkeypatch: pytest.MonkeyPatch, devices: int, speed: float, asked: list[str]
) -> None:
    rates = {"cpu": 5.0, "cuda:0": 4.0, "cuda:1": 2.0, "cuda:2": 3.0}
    measured: list[str] = []
    threads: list[int] = []

    def measure_device(device: str, *, seconds: float, host: str) -> Iterator[SimpleNamespace]:
        assert (seconds, host) == (0.25, "127.0.0.1")
        measured.append(device)
        yield SimpleNamespace(check="bits", value=0.0)
        yield SimpleNamespace(check="gemm", value=rates[device])
        raise AssertionError("nothing else is measured")

    torch = SimpleNamespace(
        set_num_threads=threads.append, device=str, cuda=SimpleNamespace(device_count=lambda: devices)
    )
    monkeypatch.setitem(sys.modules, "torch", cast(Any, torch))
    measure = cast(Any, SimpleNamespace(measure_device=measure_device))
    monkeypatch.setitem(sys.modules, "megascale.diagnose.measure", measure)
    assert module.measured(0.25) == speed
    assert (measured, threads) == (asked, [1])


class EndsMeanwhile:
    """A process that ends after the deadline and before it is killed."""

    pid = 0
    returncode: int | None = None

    async def communicate(self) -> tuple[bytes, bytes]:
        raise TimeoutError

    def kill(self) -> None:
        raise ProcessLookupError

    async def wait(self) -> int:
        self.returncode = 0
        return 0


def test_a_measurement_that_ends_before_it_is_killed_is_only_late(monkeypatch: pytest.MonkeyPatch) -> None:
    process = EndsMeanwhile()

    async def start(*_command: str, **_pipes: int) -> EndsMeanwhile:
        return process

    monkeypatch.setattr(module.asyncio, "create_subprocess_exec", start)
    assert asyncio.run(node_speed(0.25, 1.0)) == 0.0
    assert process.returncode == 0
