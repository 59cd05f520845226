"""Restart: SIGKILL of one rank to the first completed step of the next attempt, ours against torchrun.

Both train the quickstart's model with the same engine and the same checkpoints
(every 5 steps), and are killed by the same fault injector at the same steps. The clock starts at the
injector's marker, written right before the SIGKILL, and stops at the time in the first metrics line of
the next attempt. The two run in turn, round by round, so that both run under the same load.

torchrun runs with its best settings: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, one node, a monitor interval of
0.1 s. `--shared-store` adds a round without that setting and counts the restarts it loses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from report import machine, write_result

from megascale.data.prepare import prepare
from megascale.job import load_job, resolved_yaml, with_faults
from megascale.job.inject import parse_inject

ROOT = Path(__file__).parents[1]
STEPS_PER_KILL = 7
CHECKPOINT_STEPS = 5
_HELP = argparse.RawDescriptionHelpFormatter
_TIMEOUT_PER_KILL_S = 30.0
TARGET_MEDIAN_S, TARGET_RATIO = 1.0, 0.15


@dataclass
class Outcome:
    """Seconds per recovered kill, crash detection seconds (ours only), and what was lost."""

    recoveries_s: list[float] = field(default_factory=list)
    detections_s: list[float] = field(default_factory=list)
    kills: int = 0
    first_restart: int = 0
    completed: bool = True


def manifest(folder: Path, name: str, kills: int) -> Path:
    """The quickstart with `kills` kills of rank 1."""
    job = load_job(ROOT / "examples" / "quickstart.yaml")
    data = json.loads(job.model_dump_json(by_alias=True))
    data["metadata"]["name"] = name
    data["spec"] |= {"steps": STEPS_PER_KILL * (kills + 1), "spareNodes": 0, "faults": []}
    data["spec"]["checkpoint"]["everySteps"] = CHECKPOINT_STEPS
    data["spec"]["recovery"] = {
        "maxRestarts": 10 * kills,
        # Without this the third crash of a node in a row has it replaced, which is not what is measured.
        "rules": [{"match": {"cause": "crash"}, "action": "restart_in_place"}],
    }
    data["spec"]["runtime"]["megatron"]["data"] |= {"path": str(folder / "data"), "prepareFrom": []}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(data))
    faults = [parse_inject(f"kill-rank:rank=1,step={STEPS_PER_KILL * (k + 1)}") for k in range(kills)]
    path.write_text(resolved_yaml(with_faults(load_job(path), faults)))
    return path


def run_ours(folder: Path, name: str, kills: int) -> Outcome:
    command = [sys.executable, "-c", "from megascale.cli.main import main; main()"]
    arguments = ["run", str(manifest(folder, name, kills)), "--json"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    outcome = measure(folder / "runs" / name, kills)
    outcome.completed = done.returncode == 0
    for incident in json.loads(done.stdout)["incidents"]:
        outcome.detections_s.append(incident["detectionSeconds"])
    return outcome


def run_torchrun(folder: Path, name: str, kills: int, *, shared_store: bool = False) -> Outcome:
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True)
    manifest(folder, name, kills).rename(run_dir / "job.yaml")
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if not shared_store:
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [f"--max-restarts={2 * kills}", "--monitor-interval=0.1"]
    script = [str(Path(__file__).with_name("restart_rival.py")), str(run_dir)]
    with (run_dir / "torchrun.log").open("w") as log:
        launcher = subprocess.Popen(
            [*command, *options, *script], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            completed = launcher.wait(timeout=_TIMEOUT_PER_KILL_S * kills) == 0
        except subprocess.TimeoutExpired:
            completed = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
    outcome = measure(run_dir, kills)
    outcome.completed = completed
    return outcome


def measure(run_dir: Path, kills: int) -> Outcome:
    """From fault markers to the first metrics line of a later attempt."""
    first_line: dict[int, float] = {}
    for raw in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(raw)
        first_line.setdefault(line["attempt"], line["time"])
    outcome = Outcome(kills=kills)
    for path in sorted((run_dir / "faults").glob("*")):
        marker = json.loads(path.read_text())
        later = sorted(attempt for attempt in first_line if attempt > marker["attempt"])
        if later:
            outcome.recoveries_s.append(first_line[later[0]] - marker["time"])
            outcome.first_restart += later[0] == marker["attempt"] + 1
    return outcome


def merge(outcomes: list[Outcome]) -> Outcome:
    total = Outcome(completed=all(outcome.completed for outcome in outcomes))
    for outcome in outcomes:
        total.recoveries_s += outcome.recoveries_s
        total.detections_s += outcome.detections_s
        total.kills += outcome.kills
        total.first_restart += outcome.first_restart
    return total


def row(name: str, outcome: Outcome) -> str:
    seconds = sorted(outcome.recoveries_s)
    spread = (
        f"{seconds[0]:.2f} | {statistics.median(seconds):.2f} | {seconds[-1]:.2f}" if seconds else "- | - | -"
    )
    return f"| {name} | {outcome.kills} | {outcome.first_restart} | {len(seconds)} | {spread} |"


def report(ours: Outcome, rival: Outcome, shared: Outcome | None) -> str:
    lines = [
        "| what | kills | recovered at first restart | recovered | min s | median s | max s |",
        "|---|---|---|---|---|---|---|",
        row("megascale", ours),
        row("torchrun", rival),
    ]
    if shared is not None:
        lines.append(row("torchrun, shared store (default)", shared))
    median = statistics.median(ours.recoveries_s)
    ratio = median / statistics.median(rival.recoveries_s)
    detections = sorted(ours.detections_s)
    p99 = detections[min(len(detections) - 1, int(0.99 * len(detections)))]
    seen = f"p50 {statistics.median(detections):.3f} s, p99 {p99:.3f} s over {len(detections)} kills"
    lines += [
        "",
        f"- median: {median:.2f} s (target < {TARGET_MEDIAN_S:g} s)",
        f"- ratio of medians: {ratio:.3f} (target <= {TARGET_RATIO:g})",
        f"- crash seen by the driver after the kill: {seen} (target p99 <= 1 s)",
    ]
    if shared is not None and not shared.completed:
        lines.append("- with its default shared store torchrun did not finish")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5, help="per round and launcher")
    parser.add_argument("--shared-store", action="store_true", help="also measure torchrun's default store")
    parser.add_argument("--write", action="store_true", help="write a dated result file")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="megascale-restart-") as name:
        folder = Path(name)
        prepare(["python-stdlib"], folder / "data")
        ours, rival = [], []
        for index in range(arguments.rounds):
            ours.append(run_ours(folder, f"ours-{index}", arguments.kills))
            print(row(f"megascale, round {index + 1}", ours[-1]), flush=True)
            rival.append(run_torchrun(folder, f"torchrun-{index}", arguments.kills))
            print(row(f"torchrun, round {index + 1}", rival[-1]), flush=True)
        shared = None
        if arguments.shared_store:
            shared = run_torchrun(folder, "torchrun-shared", arguments.kills, shared_store=True)
    body = report(merge(ours), merge(rival), shared)
    print(body)
    if arguments.write:
        print(write_result("restart", body))


if __name__ == "__main__":
    main()
