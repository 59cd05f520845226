"""Cost of the event-level simulator, and its results for the reference scenario.

    python benchmarks/simulate.py [--seeds 8] [--quick]

Four tables: CPU seconds and memory of 12,288 GPUs for 54 days; how the cost grows with days, nodes and
faults; the reference result at 1x, 2x and 4x of every duration and against other policies, with 95% intervals
over seeds; published figures beside simulated ones (three seeds). Costs are CPU seconds and not wall time, so
that other load on the machine matters little. Writes `benchmarks/results/simulate-<date>.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from report import write_result

from megascale.sim.compare import Estimate, Variant, run_variants
from megascale.sim.failures import DAY_S
from megascale.sim.scenario import load, names
from megascale.sim.validity import compare_figures

REFERENCE = "reference-12288"
_ONE = """\
import json, resource, sys, time
from megascale.sim.campaign import Campaign
from megascale.sim.scenario import load
changes = json.loads(sys.argv[1])
scenario = load(sys.argv[2])
rate = changes.pop("rate", 1.0)
failures = scenario.failures.model_copy(update={"per_node_day": scenario.failures.per_node_day * rate})
scenario = scenario.model_copy(update=changes | {"failures": failures})
began = time.process_time()
ledger = Campaign(scenario, seed=1).run()
cpu_s = time.process_time() - began
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {"cpuSeconds": cpu_s, "peakMib": peak_mib, "events": ledger.events, "restarts": ledger.restarts}
print(json.dumps(found))
"""


def cost(**changes: float) -> dict[str, Any]:
    """One campaign in a process of its own, so that its memory is its own too."""
    command = [sys.executable, "-c", _ONE, json.dumps(changes), REFERENCE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _row(label: str, found: dict[str, Any]) -> str:
    per_event = found["cpuSeconds"] / found["events"] * 1e6
    return (
        f"| {label} | {found['events']:,} | {found['restarts']} | {found['cpuSeconds']:.1f} | "
        f"{per_event:.0f} | {found['peakMib']:.0f} |"
    )


def cost_tables(*, quick: bool) -> list[str]:
    """Vary one thing at a time around 1,536 nodes, Llama 3's failure rate, and some days."""
    base = 4 if quick else 14
    head = ["| | events | restarts | CPU s | us an event | MiB |", "|---|---|---|---|---|---|"]
    lines = ["## Cost", "", *head, _row("12,288 GPUs, 54 days", cost(days=2 if quick else 54)), ""]
    lines += ["Days without a fault (what quiet time costs):", "", *head]
    lines += [_row(f"{days} days", cost(days=days, rate=0.0)) for days in (base, 4 * base, 16 * base)]
    lines += ["", f"Failure rate, {base} days:", "", *head]
    lines += [_row(f"{rate:g} x Llama 3", cost(days=base, rate=rate)) for rate in (0.5, 1.0, 2.0, 4.0)]
    lines += ["", f"Nodes with the faults of the whole job kept the same, {base} days:", "", *head]
    for gpus in (3072, 12288, 49152):
        lines.append(_row(f"{gpus:,} GPUs", cost(days=base, gpus=gpus, rate=12288 / gpus)))
    return lines


def _share(found: Estimate) -> str:
    around = f" ± {found.plus_minus:.3%}" if found.plus_minus is not None else ""
    return f"{found.mean:.3%}{around}"


def _count(found: Estimate) -> str:
    around = f" ± {found.plus_minus:.1f}" if found.plus_minus is not None else ""
    return f"{found.mean:.1f}{around}"


def result_tables(seeds: Sequence[int], *, quick: bool) -> list[str]:
    """The reference scenario at several stretches, and beside other policies."""
    scenario = load(REFERENCE)
    if quick:
        scenario = scenario.model_copy(update={"days": 2})
    variants = run_variants(scenario, policies=["ours"], seeds=seeds, stretches=[1.0, 2.0, 4.0])
    others = run_variants(scenario, policies=["no-spares", "requeue"], seeds=seeds[:3])
    head = "| policy | seeds | effective training time | automatic | wrong evictions a month | restarts |"
    lines = [f"## {scenario.title}", "", head, "|---|---|---|---|---|---|"]
    return lines + [_variant(each) for each in (*variants, *others)]


def _variant(variant: Variant) -> str:
    month = variant.estimate(lambda r: r.wrong_evictions / (r.wall_s / (30 * DAY_S)))
    return (
        f"| {variant.label} | {len(variant.results)} | "
        f"{_share(variant.estimate(lambda r: r.effective_training_time))} | "
        f"{_share(variant.estimate(lambda r: r.automatic_share))} | {_count(month)} | "
        f"{_count(variant.estimate(lambda r: float(r.restarts)))} |"
    )


def validity_table(seeds: Sequence[int]) -> list[str]:
    """Every figure that a scenario says was published, under the policy it was published for."""
    head = "| scenario | figure | policy | published | simulated | residual |"
    lines = ["## Published and simulated", "", head, "|---|---|---|---|---|---|"]
    for scenario in map(load, names()):
        policies = list(dict.fromkeys(figure.policy for figure in scenario.figures))
        for each in compare_figures(scenario, run_variants(scenario, policies=policies, seeds=seeds)):
            figure = each.figure
            bound = {"atLeast": ">= ", "atMost": "<= "}.get(figure.relation, "")
            lines.append(
                f"| {scenario.name} | {figure.name} | {figure.policy} | {bound}{figure.value:g} | "
                f"{each.simulated:.4g} | {each.residual:+.1%} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a few days only: does it run at all")
    options = parser.parse_args()
    lines = cost_tables(quick=options.quick)
    lines += ["", *result_tables(range(options.seeds), quick=options.quick)]
    if not options.quick:
        lines += ["", *validity_table(range(3))]
    text = "\n".join(lines)
    print(text)
    if not options.quick:
        print(f"\nwritten to {write_result('simulate', text)}")


if __name__ == "__main__":
    main()
