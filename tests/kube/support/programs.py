"""The suite's programs as processes: started, ready after their first line, always stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[2]


def python_path() -> str:
    """Return the PYTHONPATH of the support programs and the operator."""
    return os.pathsep.join([str(_HERE), str(_REPOSITORY), str(_REPOSITORY / "operator")])


@dataclass
class Program:
    """`python -m MODULE ARGUMENTS`; its stderr goes to a file."""

    module: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[str] | None = None

    def start(self, *, first_line_s: float = 0.0) -> str:
        """Start the process; with `first_line_s` wait up to that long for stdout's first line; return it."""
        environment = os.environ | {"PYTHONPATH": python_path()}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                stdout=subprocess.PIPE if first_line_s else log,
                stderr=log,
                text=True,
                env=environment,
                cwd=_REPOSITORY,
            )
        return self._first_line(first_line_s) if first_line_s else ""

    def _first_line(self, timeout_s: float) -> str:
        process = self.process
        if process is None or process.stdout is None:
            raise RuntimeError(f"{self.module} has no output to wait for")
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        line = process.stdout.readline().strip() if ready else ""
        if not line:
            self.stop()
            raise RuntimeError(
                f"{self.module} printed nothing within {timeout_s:g} s:\n{self.log.read_text()[-4000:]}"
            )
        return line

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)

    def stop(self, grace_s: float = 10.0) -> int | None:
        """Send SIGTERM, then SIGKILL; return the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def api_server(folder: Path, *arguments: str) -> Program:
    """Start the API server double and wait until it has written `folder/kubeconfig`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = Program("apiserver", ["--dir", str(folder), *arguments], folder / "apiserver.log")
    program.start(first_line_s=30.0)
    return program


def kubelet(folder: Path, kubeconfig: Path, *arguments: str) -> tuple[Program, str]:
    """Start process nodes and wait until they are registered; also return their control port's URL."""
    folder.mkdir(parents=True, exist_ok=True)
    program = Program(
        "kubelet", ["--kubeconfig", str(kubeconfig), "--dir", str(folder), *arguments], folder / "kubelet.log"
    )
    return program, program.start(first_line_s=30.0)


def proxy(folder: Path, kubeconfig: Path, *clients: str) -> tuple[Program, str]:
    """Start a fault-injecting proxy with a listener per client; also return its control port's URL."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--kubeconfig", str(kubeconfig), "--dir", str(folder), "--clients", *clients]
    program = Program("proxy", arguments, folder / "proxy.log")
    return program, program.start(first_line_s=30.0)


def simulated(folder: Path, kubeconfig: Path, *arguments: str) -> tuple[Program, str]:
    """Start simulated nodes and wait until they accept pods; also return their control port's URL."""
    folder.mkdir(parents=True, exist_ok=True)
    given = ["--kubeconfig", str(kubeconfig), "--dir", str(folder), *arguments]
    program = Program("simulated", given, folder / "simulated.log")
    return program, program.start(first_line_s=600.0)
