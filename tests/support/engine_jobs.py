"""Attempts of real engine ranks over gloo, without driver and agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore

from megascale.core.contract.lineage import Commit
from megascale.job import from_mapping, to_mapping
from megascale.observe.rankfile import Control, RankFile, RankRecord

STEPS = 5
_CHOICES = ("precision", "recompute", "overlap")
LAYOUTS: dict[str, tuple[int, dict[str, Any], str]] = {
    "dp2": (2, {}, "data"),
    "tp2": (2, {"tensor": 2}, "tensor"),
    "tp2-sequence": (2, {"tensor": 2, "sequence": True}, "tensor"),
    "pp2": (2, {"pipeline": 2}, "pipeline"),
    "pp2-interleaved": (2, {"pipeline": 2, "interleave": 2}, "pipeline"),
    "tp2-pp2": (4, {"tensor": 2, "pipeline": 2}, "tensor"),
    "tp2-dp2": (4, {"tensor": 2}, "tensor"),
}


class Zygote:
    """The process that ranks are forked from; one for all tests."""

    def __init__(self) -> None:
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("engine_zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | pinned,
        )
        self.threads = self._answer()["threads"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, request: dict[str, Any]) -> list[int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()["statuses"]

    def close(self) -> None:
        self._process.communicate(timeout=30)


@dataclass
class Job:
    """One job's folder, and how its attempts are run."""

    zygote: Zygote
    folder: Path
    lineage: dict[int, Commit | None] = field(default_factory=dict)

    def attempt(
        self,
        spec: dict[str, Any],
        world: int,
        *,
        resume: Commit | None = None,
        control: Control = Control.NONE,
        **options: Any,
    ) -> list[int]:
        """Run the next attempt to its end; wait statuses by rank."""
        number = len(self.lineage) + 1
        self.lineage[number] = resume
        for rank in range(world):
            record = RankRecord(term=1, attempt=number, rank=rank)
            RankFile.create(self.folder / "ranks" / str(rank), record).control = control
        store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        pair = {n: [c.step, c.attempt] if c else None for n, c in self.lineage.items()}
        return self.zygote.ask(
            {
                "runDir": str(self.folder),
                "spec": spec,
                "attempt": number,
                "world": world,
                "resume": pair[number],
                "lineage": pair,
                "port": store.port,
                **options,
            }
        )

    def complete(
        self, spec: dict[str, Any], world: int, *, resume: Commit | None = None, **options: Any
    ) -> None:
        statuses = self.attempt(spec, world, resume=resume, **options)
        assert statuses == [0] * world, self.logs()

    def records(self) -> dict[int, dict[str, Any]]:
        """Step records by step; a step that was repeated counts as the last attempt wrote it."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record for record in map(json.loads, lines)}

    def losses(self) -> list[float]:
        return [record["loss"] for _, record in sorted(self.records().items())]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("rank-*.log")))

    def record_of(self, rank: int) -> RankRecord:
        return RankFile.open(self.folder / "ranks" / str(rank)).read()


def job_spec(tokens: Path, nodes: int, *, steps: int = STEPS, **sections: Any) -> dict[str, Any]:
    """A tiny job; keyword arguments replace fields of the sections of the same name."""
    megatron: dict[str, Any] = {
        "model": {
            "numLayers": 4,
            "hiddenSize": 32,
            "attentionHeads": 4,
            "kvHeads": 2,
            "window": 8,
        },
        "data": {"path": str(tokens), "sequenceLength": 32, "microBatch": 1, "globalBatch": 8},
        "optimizer": {"lr": 0.02},
    }
    for name in ("model", "parallelism", "optimizer", "data"):
        megatron[name] = megatron.get(name, {}) | sections.get(name, {})
    body = {
        "nodes": nodes,
        "steps": steps,
        "checkpoint": {"everySteps": 2} | sections.get("checkpoint", {}),
        "faults": sections.get("faults", []),
        "runtime": {"megatron": megatron | {k: sections[k] for k in _CHOICES if k in sections}},
    }
    manifest = {"metadata": {"name": "test"}, "spec": body}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob"}
    return to_mapping(from_mapping(head | manifest))
