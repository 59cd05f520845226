"""The view of a running job: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Final, Protocol, Self, TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from megascale.cli.safe_console import safe_console
from megascale.cli.stages import STAGE_LABELS
from megascale.cli.words import duration_text, plural
from megascale.core.contract.vocabulary import FinishState, Milestone
from megascale.core.state.record import JobState
from megascale.observe.rundir import RunDir
from megascale.observe.text import shown, shown_text

_PLAIN_EVERY_S: Final = 5.0
_STATE_STYLE: Final = {
    JobState.RUNNING: "green",
    FinishState.COMPLETED: "bold green",
    FinishState.FAILED: "bold red",
    FinishState.STOPPED: "yellow",
    JobState.LAUNCHING: "cyan",
    JobState.ASSEMBLING: "cyan",
}
_MFU_BASIS: Final = "of this CPU's peak"
_ASSEMBLING: Final = (
    "nodes are starting: each imports torch and Megatron-core once, then forks ranks in milliseconds"
)
_INCIDENT_COLUMNS: Final = (
    ("incident", 10),
    ("what happened", None),
    ("action", 16),
    ("detected", 9),
    ("recovered", 9),
)
_RATED_FROM_FLOPS: Final = 1e14


class View(Protocol):
    """Shows a run; a context manager for as long as it is followed."""

    def note(self, text: str) -> None:
        """A line for people, at once."""

    def update(self, document: dict[str, Any]) -> None:
        """The newest status document."""

    def summary(self, document: dict[str, Any]) -> None:
        """The end of the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_error: object) -> None: ...


def make_view(run: RunDir, *, as_json: bool) -> View:
    """A live view where stdout is a terminal, else lines; on stderr where stdout is for JSON.

    Args:
        run: the folder of the run, whose logs are named at incidents.
    """
    if as_json:
        return LineView(sys.stderr, run)
    return LiveView(run) if sys.stdout.isatty() else LineView(sys.stdout, run)


class LiveView:
    """A table that is redrawn in place."""

    def __init__(self, run: RunDir) -> None:
        self._console = safe_console()
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._news, self._run = News(run), run

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def update(self, document: dict[str, Any]) -> None:
        document = shown(document)
        for line in self._news.of(document):
            self._console.print(Text(line, style="yellow"))
        self._live.update(render(document))

    def summary(self, document: dict[str, Any]) -> None:
        self._console.print(render_summary(shown(document)))
        for line in last_words(document, self._run):
            self._console.print(Text(line))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()


class LineView:
    """One line per piece of news, and one every few seconds while steps come."""

    def __init__(self, stream: TextIO, run: RunDir) -> None:
        self._stream, self._run = stream, run
        self._news = News(run)
        self._shown_at = 0.0
        self._shown: tuple[Any, ...] = ()
        self._step = 0

    def note(self, text: str) -> None:
        self._stream.write(shown_text(text) + "\n")
        self._stream.flush()

    def update(self, document: dict[str, Any]) -> None:
        document = shown(document)
        for line in self._news.of(document):
            self.note(line)
        head = (document["state"], document["attempt"])
        now = time.monotonic()
        due = now - self._shown_at >= _PLAIN_EVERY_S and document["step"] != self._step
        if head != self._shown or due:
            self.note(one_line(document))
            self._shown, self._shown_at, self._step = head, now, document["step"]

    def summary(self, document: dict[str, Any]) -> None:
        safe_console(file=self._stream, width=110).print(render_summary(shown(document)))
        for line in last_words(document, self._run):
            self.note(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return


class News:
    """What has become known since the last document: incidents, recoveries, alerts."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._outcomes: dict[str, str] = {}
        self._decided: set[str] = set()
        self._alerted_at = 0.0

    def of(self, document: dict[str, Any]) -> list[str]:
        """Lines to print, oldest first."""
        lines = []
        for incident in document.get("incidents", []):
            known = self._outcomes.get(incident["id"])
            self._outcomes[incident["id"]] = incident["outcome"]
            if known is None:
                lines.append(f"incident {incident['id']}: {incident['reason']}")
            if incident["action"] and incident["id"] not in self._decided:
                self._decided.add(incident["id"])
                if known is not None:
                    lines.append(f"  {incident['id']} is found to be: {incident['reason']}")
                action = incident["action"].replace("_", " ")
                lines.append(f"  decision: {action}: {incident['decision']}")
                lines += words_of(incident, self._run)
            if incident["outcome"] != "open" and known in (None, "open"):
                lines.append(f"  {incident['id']} {incident['outcome']}: {milestones_text(incident)}")
        for alert in document.get("alerts", []):
            if alert["time"] > self._alerted_at:
                self._alerted_at = alert["time"]
                lines.append(f"alert: {alert['message']}")
        return lines


def words_of(incident: dict[str, Any], run: RunDir) -> list[str]:
    """What is known of an incident beside its reason: the last lines of the rank's log, and its path."""
    lines = [f"  | {text}" for text in incident.get("evidence", ()) if text]
    if incident.get("rank") is not None and incident.get("attempt"):
        lines.append(f"  log: {run.rank_log(incident['attempt'], incident['rank'])}")
    return lines


def last_words(document: dict[str, Any], run: RunDir) -> list[str]:
    """What to look at after a failed end: the last incident's lines and the path of its log."""
    incidents = document.get("incidents")
    if document.get("state") != FinishState.FAILED or not incidents:
        return []
    return [f"what {incidents[-1]['id']} left:", *words_of(incidents[-1], run)]


def stage_durations(incident: dict[str, Any]) -> list[tuple[str, float]]:
    """(stage, seconds since the stage before it), in order; stages that were not reached are left out."""
    stages = incident["milestones"]
    before = stages[Milestone.FAULT]["at"]
    durations = []
    for name, label in STAGE_LABELS:
        if name in stages:
            at = max(before, stages[name]["at"])
            durations.append((label, at - before))
            before = at
    return durations


def milestones_text(incident: dict[str, Any]) -> str:
    """The stages in one line; the total runs from the fault to the first new step."""
    parts = ", ".join(f"{label} {seconds * 1e3:.0f} ms" for label, seconds in stage_durations(incident))
    total = incident.get("recoverySeconds")
    return f"{parts}; {total:.2f} s from fault to first new step" if total is not None else parts


def one_line(document: dict[str, Any]) -> str:
    """Progress in one plain line."""
    parts = [f"{document['job']} {document['state']}"]
    if _knows_steps(document):
        parts.append(f"step {document['step']}/{document['steps']}")
    if document.get("loss") is not None:
        parts.append(f"loss {_number(document['loss'], '.4f')}")
    if document.get("stepSeconds"):
        parts.append(f"{document['stepSeconds']:.3f} s/step")
    if document.get("tokensPerSecond"):
        parts.append(f"{document['tokensPerSecond']:,.0f} tokens/s")
    if document.get("mfu"):
        parts.append(f"MFU {document['mfu']:.1%}")
    if document.get("goodput") is not None:
        parts.append(f"goodput {_goodput(document)}")
    if (left := remaining_s(document)) is not None:
        parts.append(f"{duration_text(left)} left")
    parts.append(plural(document["restarts"], "restart"))
    return "  ".join(parts)


def remaining_s(document: dict[str, Any]) -> float | None:
    """Seconds that the remaining steps of a running job take at its present pace; None if that is unknown."""
    left = document["steps"] - document["step"]
    if document["state"] != JobState.RUNNING or not document.get("stepSeconds") or left <= 0:
        return None
    return float(left * document["stepSeconds"])


def render(document: dict[str, Any]) -> RenderableType:
    """The status document as a panel."""
    parts: list[RenderableType] = [_facts(document)]
    if document.get("nodes"):
        parts.append(_nodes(document))
    if document["state"] == "assembling":
        parts.append(Text(_ASSEMBLING, style="dim"))
    if document.get("incidents"):
        parts.append(_last_incident(document["incidents"][-1]))
    state = document["state"]
    attempt = f"  attempt {document['attempt']}" if document.get("attempt") else ""
    style = _STATE_STYLE.get(state, "yellow")
    title = Text.assemble((document["job"], "bold"), "  ", (state, style), attempt)
    return Panel(Group(*parts), title=title, title_align="left")


def _facts(document: dict[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column()
    if _knows_steps(document):
        _add_progress(grid, document)
    grid.add_row("goodput", _goodput(document), "restarts", str(document["restarts"]))
    if _knows_steps(document) or document.get("checkpointStep") is not None:
        newest = _with_unit(document.get("checkpointStep"), "d", "", "step ")
        grid.add_row("newest checkpoint", newest, "", "")
    if _knows_steps(document):
        _add_outlook(grid, document)
    return grid


def _knows_steps(document: dict[str, Any]) -> bool:
    """Whether the ranks report steps; of a plain script nothing but its processes is known."""
    return bool(document.get("reportsSteps", True))


def _goodput(document: dict[str, Any]) -> str:
    share = _number(document.get("goodput"), ".1%")
    if _knows_steps(document) or document.get("goodput") is None:
        return share
    return f"at most {share} (no steps reported: lost work is not known)"


def _add_progress(grid: Table, document: dict[str, Any]) -> None:
    step, steps = document["step"], document["steps"]
    grid.add_row("step", f"{step} / {steps}", "progress", ProgressBar(total=steps, completed=step, width=30))
    grid.add_row(
        "loss",
        _number(document.get("loss"), ".4f"),
        "step time",
        _with_unit(document.get("stepSeconds"), ".3f", " s"),
    )
    grid.add_row(
        "tokens/s",
        _number(document.get("tokensPerSecond"), ",.0f"),
        "MFU",
        f"{_with_unit(document.get('mfu'), '.1%', '')} {_basis(document)}",
    )


def _add_outlook(grid: Table, document: dict[str, Any]) -> None:
    left, batches = remaining_s(document), document.get("microBatches")
    each = f"{batches['perRank']} x {plural(batches['samples'], 'sample')}" if batches else "-"
    grid.add_row("time left", "-" if left is None else duration_text(left), "micro-batches", each)


def _basis(document: dict[str, Any]) -> str:
    if document.get("mfu") is None:
        return ""
    peak = document.get("peakFlops")
    return "of the GPU's rated peak" if peak and peak >= _RATED_FROM_FLOPS else _MFU_BASIS


def _nodes(document: dict[str, Any]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("node", "status", "role", "rank", "phase", "step", "step time", "MFU"):
        table.add_column(name, no_wrap=name != "node", overflow="fold")
    known = _knows_steps(document)
    for node in document["nodes"]:
        style = "green" if node["status"] == "ready" else "red"
        head = (node["name"], Text(node["status"], style=style), node["role"])
        for rank in node["ranks"]:
            table.add_row(
                *head,
                str(rank["rank"]),
                rank["phase"] if known else "running",
                str(rank["step"]) if known else "",
                _with_unit(rank["stepSeconds"] or None, ".3f", " s"),
                _number(rank["mfu"], ".1%"),
            )
            head = ("", Text(""), "")
        if not node["ranks"]:
            table.add_row(*head, "", "idle", "", "", "")
    return table


def _last_incident(incident: dict[str, Any]) -> RenderableType:
    style = "yellow" if incident["outcome"] == "open" else "dim"
    head = f"last incident {incident['id']} ({incident['outcome']}): {incident['reason']}"
    return Text(f"{head}\n  {milestones_text(incident)}", style=style)


def render_summary(document: dict[str, Any]) -> RenderableType:
    """The end of a run: what was reached, what went wrong and what it cost."""
    grid = Table.grid(padding=(0, 2))
    if _knows_steps(document):
        grid.add_row("steps", f"{document.get('step', 0)} / {document.get('steps', 0)}")
        grid.add_row("loss", _number(document.get("loss"), ".4f"))
        grid.add_row("tokens/s", _number(document.get("tokensPerSecond"), ",.0f"))
        grid.add_row("MFU", f"{_with_unit(document.get('mfu'), '.1%', '')} {_basis(document)}")
    grid.add_row("goodput", f"{_goodput(document)}  {_phases(document)}")
    grid.add_row("restarts", str(document.get("restarts", 0)))
    if _knows_steps(document) or document.get("checkpointStep") is not None:
        grid.add_row("newest checkpoint", _with_unit(document.get("checkpointStep"), "d", "", "step "))
    parts: list[RenderableType] = [grid]
    if document.get("reason"):
        parts.append(Text(document["reason"]))
    if document.get("incidents"):
        parts.append(_incidents(document["incidents"]))
    state = document.get("state", "unknown")
    title = Text.assemble((document.get("job", ""), "bold"), "  ", (state, _STATE_STYLE.get(state, "yellow")))
    return Panel(Group(*parts), title=title, title_align="left")


def _phases(document: dict[str, Any]) -> str:
    seconds = document.get("goodputSeconds") or {}
    shown = sorted(((s, phase) for phase, s in seconds.items() if s >= 0.05), reverse=True)
    return "(" + ", ".join(f"{phase} {s:.1f} s" for s, phase in shown) + ")" if shown else ""


def _incidents(incidents: list[dict[str, Any]]) -> RenderableType:
    """Incidents, each with its stages in a line of its own width."""
    parts: list[RenderableType] = []
    for incident in incidents:
        table = Table(box=None, padding=(0, 1), header_style="dim", show_header=not parts, expand=True)
        for name, width in _INCIDENT_COLUMNS:
            table.add_column(name, overflow="fold", width=width, ratio=None if width else 1)
        table.add_row(
            incident["id"],
            Text(incident["reason"]),
            incident["action"].replace("_", " "),
            _with_unit(incident["detectionSeconds"], ".3f", " s"),
            _with_unit(incident["recoverySeconds"], ".2f", " s"),
        )
        parts += [table, Padding(Text(milestones_text(incident), style="dim"), (0, 1, 0, 13))]
    return Group(*parts)


def _number(value: Any, spec: str) -> str:  # noqa: ANN401 - a JSON value
    return format(value, spec) if isinstance(value, int | float) else "-" if value is None else str(value)


def _with_unit(value: Any, spec: str, unit: str, before: str = "") -> str:  # noqa: ANN401
    return f"{before}{_number(value, spec)}{unit}" if value is not None else "-"
