"""A campaign as a self-contained HTML page: phases over time, faults, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from megascale.core.state.goodput import GoodputPhase
from megascale.observe.text import as_html
from megascale.sim.campaign import Ledger
from megascale.sim.failures import DAY_S, FALSE_HANG, FALSE_SILENCE
from megascale.sim.result import Result
from megascale.sim.scenario import Scenario

_WIDTH, _ROW, _GAP = 1160, 26, 8
COLOURS: Final = {
    GoodputPhase.PRODUCTIVE: "#2f9e62",
    GoodputPhase.STARTUP: "#8fa3ad",
    GoodputPhase.CHECKPOINT_STALL: "#d9a520",
    GoodputPhase.LOST_WORK: "#b5533c",
    GoodputPhase.DETECTION: "#8e5ea2",
    GoodputPhase.DIAGNOSIS: "#5a4fcf",
    GoodputPhase.RECOVERY: "#2f7fbf",
    GoodputPhase.WAITING_FOR_NODES: "#40464a",
    GoodputPhase.SUSPENDED: "#c9ced1",
}


def page(scenario: Scenario, policy: str, ledger: Ledger, result: Result) -> str:
    """One row per day: what the job did, with a mark for every injected fault."""
    days = max(1, -(-int(ledger.wall_s) // int(DAY_S)))
    height = days * (_ROW + _GAP) + 20
    bars = "".join(_bars(ledger, days))
    marks = "".join(_marks(ledger))
    labels = "".join(
        f'<text x="0" y="{_top(day) + 17}" class="label">day {day + 1}</text>' for day in range(days)
    )
    svg = (
        f'<svg viewBox="0 0 {_WIDTH + 60} {height}" role="img" aria-label="phases of the job by day">'
        f"{labels}{bars}{marks}</svg>"
    )
    title = f"{scenario.title}, policy {policy}"
    return _PAGE.format(title=as_html(title), summary=_summary(result), legend=_legend(result), svg=svg)


def _top(day: int) -> int:
    return day * (_ROW + _GAP) + 4


def _x(second_of_day: float) -> float:
    return 56 + second_of_day / DAY_S * _WIDTH


def _bars(ledger: Ledger, days: int) -> list[str]:
    """Stretches of one phase, cut at midnight; those under a pixel are drawn a pixel wide."""
    bars = []
    ends = [start for start, _ in ledger.phases[1:]] + [ledger.wall_s]
    for (start, phase), end in zip(ledger.phases, ends, strict=True):
        for day in range(int(start // DAY_S), min(days, int(end // DAY_S) + 1)):
            low, high = max(start, day * DAY_S) - day * DAY_S, min(end - day * DAY_S, DAY_S)
            if high > low:
                width = max(1.0, _x(high) - _x(low))
                colour = COLOURS[GoodputPhase(phase)]
                text = f"{phase}, {high - low:.0f} s"
                bars.append(
                    f'<rect x="{_x(low):.1f}" y="{_top(day)}" width="{width:.1f}" height="{_ROW}" '
                    f'fill="{colour}"><title>{text}</title></rect>'
                )
    return bars


def _marks(ledger: Ledger) -> list[str]:
    marks = []
    for injection in ledger.injections:
        since = injection.at - ledger.begun
        day = int(since // DAY_S)
        x, y = _x(since - day * DAY_S), _top(day) - 2
        false = injection.kind in (FALSE_HANG, FALSE_SILENCE)
        text = as_html(f"{injection.kind} on {injection.node} {injection.incident}")
        marks.append(
            f'<path d="M{x:.1f} {y + 5} l-3 -5 h6 z" class="{"false" if false else "fault"}">'
            f"<title>{text}</title></path>"
        )
    return marks


def _legend(result: Result) -> str:
    items = []
    for phase in GoodputPhase:
        share = result.goodput.get(str(phase), 0.0) / result.wall_s
        items.append(f'<li><span style="background:{COLOURS[phase]}"></span>{phase} <b>{share:.2%}</b></li>')
    return "".join(items)


def _summary(result: Result) -> str:
    rows: Sequence[tuple[str, str]] = (
        ("effective training time", f"{result.effective_training_time:.2%}"),
        ("faults handled without a person", f"{result.automatic_share:.2%} of {result.faults}"),
        ("restarts", str(result.restarts)),
        ("wrong evictions", str(result.wrong_evictions)),
    )
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.3em; font-weight: 600; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1.5em; }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; }}
ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3em 1.4em; }}
li span {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }}
.label {{ font-size: 11px; fill: #667; }}
.fault {{ fill: #111; }} .false {{ fill: #e0218a; }}
</style></head><body>
<h1>{title}</h1><dl>{summary}</dl><ul>{legend}</ul>{svg}
<p>Black marks are injected faults, pink ones false alarms. Point at anything for details.</p>
</body></html>
"""
