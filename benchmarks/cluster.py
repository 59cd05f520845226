"""Reaction times on a cluster: apply to first step, a lost node, a change of leader, a cluster at rest.

    python benchmarks/cluster.py [--repeat 3] [--kubeconfig FILE]

Operator, driver, agents and ranks are the real programs, with the process kubelet of tests/kube, all on this
machine, against the API server double or the server of `--kubeconfig` (with scheduler, controllers and no
nodes). Ranks run a script without torch, so that only the control plane is measured. The lost node is
silent (SIGKILL for all of its processes); `silenceSeconds` is 5. Results are medians. Writes
`benchmarks/results/cluster-<date>.md`, or `cluster_real-<date>.md`. The figures of 1,536 slots come from
`pytest tests/kube/e2e/test_scale.py -s --slots 1536 [--kubeconfig FILE]`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from report import write_result

_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT / "tests" / "kube" / "support"), str(_ROOT / "operator")]

from objects import eventually, fresh  # noqa: E402 - found by the path above
from suite.jobs import Job, driver  # noqa: E402
from suite.manifests import training_job  # noqa: E402
from suite.site import OPERATORS, Site  # noqa: E402
from suite.trail import writes  # noqa: E402

_PATIENCE_S = 180.0
Figures = dict[str, list[float]]


def _since(began: float, holds: Callable[[], Any]) -> float:
    """Seconds from `began` until it holds."""
    eventually(lambda: holds() or None, _PATIENCE_S)
    return time.monotonic() - began


def _ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _start(site: Site, namespace: str, found: Figures) -> tuple[Job, Path]:
    """Apply to first step, split; the job goes on."""
    began = time.monotonic()
    job = site.job(namespace, training_job(fresh("job"), site.folder / "state", steps=100_000, step_s=0.05))
    kept = site.folder / "state" / job.name / "rank-0"
    stages: dict[str, Callable[[], Any]] = {
        "created": lambda: len(job.pods("slot")) == 3,
        "bound": lambda: all(one["spec"].get("nodeName") for one in job.pods("slot")),
        "joined": lambda: all(_ready(one) for one in job.pods("slot")),
        "first step": kept.exists,
    }
    for name, holds in stages.items():
        found.setdefault(f"apply to {name}, s", []).append(_since(began, holds))
    return job, kept


def _lose_a_node(site: Site, job: Job, kept: Path, found: Figures) -> None:
    eventually(lambda: len(site.ranks(job)) == 2 or None, _PATIENCE_S)
    job.until(lambda one: driver(one).get("jobState") == "running", "running")
    node = sorted(site.ranks(job))[0]
    began = time.monotonic()
    site.control.act(node, "stop")
    before = kept.read_text()
    moved = _since(began, lambda: node not in site.ranks(job) and len(site.ranks(job)) == 2)
    again = _since(began, lambda: kept.read_text() != before)
    found.setdefault("node lost to training again on the spare, s", []).append(max(moved, again))
    site.control.act(node, "start")
    job.patch({"metadata": {"annotations": {"megascale.io/force-delete": "true"}}})
    job.delete()
    job.until(lambda one: not one, "deleted")


def _change_leader(site: Site, how: signal.Signals, name: str, found: Figures) -> None:
    leader = site.leader()
    other = next(one for one in OPERATORS if one != leader)
    began = time.monotonic()
    site.operators[leader].signal(how)
    found.setdefault(name, []).append(_since(began, lambda: site.leader() == other))
    site.stop_operator(leader)
    site.start_operator(leader)


def _rest(site: Site, namespace: str, found: Figures) -> None:
    """Writes of the operator about a job at rest that is looked at five times, and in the 5 s after that."""
    job = site.job(namespace, training_job(fresh("rest"), site.folder / "state", suspend=True))
    job.until(lambda one: one.get("status", {}).get("observedGeneration") == 1, "observed")
    time.sleep(5.0)  # What its creation leads to is over.
    begin = len(site.faults.trail())
    for number in range(5):
        job.patch({"metadata": {"annotations": {"touched": str(number)}}})
    time.sleep(5.0)
    lines = [line for line in writes(site.faults.trail()[begin:], *OPERATORS) if namespace in line["path"]]
    found.setdefault("writes about an unchanged job that is looked at five times", []).append(len(lines))


def measure(folder: Path, repeat: int, kubeconfig: Path | None) -> Figures:
    """All figures, one value for each repetition."""
    found: Figures = {}
    with Site(folder, kubeconfig, nodes=4) as site:
        for name in OPERATORS:
            site.start_operator(name)
        namespace = site.namespace(fresh("bench"))
        for _ in range(repeat):
            job, kept = _start(site, namespace, found)
            _lose_a_node(site, job, kept, found)
            _change_leader(site, signal.SIGKILL, "operator killed (-9) to the other leads, s", found)
            _change_leader(site, signal.SIGTERM, "rollout to the other leads, s", found)
        _rest(site, namespace, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kubeconfig", type=Path, help="a real API server with scheduler and controllers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.repeat, options.kubeconfig)
    rows = [
        f"| {name} | {median(values):.2f} | {', '.join(f'{value:.2f}' for value in values)} |"
        for name, values in figures.items()
    ]
    rows.append(f"| load average of the machine | {os.getloadavg()[0]:.1f} | |")
    body = "\n".join(["| figure | median | each |", "|---|---|---|", *rows])
    print(body)
    print(f"written to {write_result('cluster_real' if options.kubeconfig else 'cluster', body)}")


if __name__ == "__main__":
    main()
