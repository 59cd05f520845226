"""Running `megascale run` as a user would, on jobs small enough for a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megascale.checkpoint.snapshot_folders import remove_folders

TEXT = "The quick brown fox jumps over the lazy dog. " * 2000
MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  nodes: 2
  spareNodes: {spares}
  steps: {steps}
  runtime:
    megatron:
      model: {{numLayers: 2, hiddenSize: 32, attentionHeads: 2, window: 16}}
      optimizer: {{name: lamb, lr: 0.01, schedule: {{name: constant}}}}
      data: {{path: {data}, sequenceLength: 32, microBatch: 2, globalBatch: 8}}
  checkpoint: {{everySteps: 5}}
  health: {{heartbeatSeconds: 1, silenceSeconds: {silence}}}
"""


@dataclass(frozen=True)
class Run:
    """A `megascale run` that ended."""

    code: int
    summary: dict[str, Any]
    stderr: str
    folder: Path

    def losses(self) -> dict[int, set[tuple[float, float]]]:
        """step -> every (loss, gradient norm) that any attempt recorded for it, exactly."""
        found: dict[int, set[tuple[float, float]]] = {}
        for raw in (self.folder / "metrics.jsonl").read_text().splitlines():
            line = json.loads(raw)
            found.setdefault(line["step"], set()).add((line["loss"], line["gradNorm"]))
        return found

    def resumes(self) -> list[tuple[tuple[int, int] | None, str]]:
        """Where each attempt went on from: (step, attempt), or None for a fresh start, and the tier."""
        found = []
        for launch in self.events("Launch"):
            resume = launch.get("resume")
            start = (resume["step"], resume["attempt"]) if resume else None
            found.append((start, launch.get("tier", "durable")))
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events and effects of a kind, in order."""
        found = []
        for raw in (self.folder / "events.jsonl").read_text().splitlines():
            line = json.loads(raw)
            for item in (line.get("event"), *line.get("effects", ())):
                found += [item] if item and item["kind"] == kind else []
        return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Look until `condition` holds; what it looks at are files, which announce nothing."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def text_of(path: Path) -> str:
    """What a file holds by now, nothing while there is none."""
    return path.read_text() if path.exists() else ""


class Jobs:
    """Starts runs in one folder and cleans up whatever they leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        (folder / "text.txt").write_text(TEXT)
        self.command("data", "prepare", "text.txt", "--output", "data/text")

    def manifest(self, name: str, *, steps: int = 30, spares: int = 0, silence: int = 6) -> Path:
        path = self.folder / f"{name}.yaml"
        text = MANIFEST.format(name=name, steps=steps, spares=spares, silence=silence, data="data/text")
        path.write_text(text)
        return path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any megascale command, to its end."""
        return subprocess.run(
            _command(arguments), cwd=self.folder, capture_output=True, text=True, timeout=100, check=False
        )

    def start(self, manifest: Path, *arguments: str) -> subprocess.Popen[str]:
        """`megascale run MANIFEST --json` in the background."""
        process = subprocess.Popen(
            _command(("run", str(manifest), "--json", *arguments)),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], manifest: Path) -> Run:
        """Wait for a started run."""
        out, err = process.communicate(timeout=110)
        summary = json.loads(out) if out.strip() else {}
        return Run(process.returncode, summary, err, self.folder / "runs" / manifest.stem)

    def run(self, manifest: Path, *arguments: str) -> Run:
        """`megascale run MANIFEST --json` to its end."""
        return self.finish(self.start(manifest, *arguments), manifest)

    def close(self) -> None:
        """Kill what still runs, whole nodes at a time."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for path in self.folder.glob("runs/*/driver.json"):
            _kill(int(json.loads(path.read_text())["pid"]))
        for path in self.folder.glob("runs/*/agents/*.json"):
            _kill_group(int(json.loads(path.read_text())["pid"]))
        for run in self.folder.glob("runs/*"):
            remove_folders(run)


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-c", "from megascale.cli.main import main; main()", *arguments]


def _kill(pid: int) -> None:
    try:
        if b"megascale" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
