"""`megascale analyze`: classifies log lines, and finds stragglers in timings."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megascale.cli.output import echo
from megascale.errors import DataError, InputError

if TYPE_CHECKING:
    from megascale.core.rules import RecordVerdict, RuleSet
    from megascale.core.stats.trace import Trace, TraceBuilder

app = typer.Typer(no_args_is_help=True, help="Find out what logs and timings say about a run.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RulesOption = Annotated[
    Path | None,
    typer.Option(
        "--rules",
        metavar="FILE",
        help="Log rules of yours: a TrainingJob with spec.logRules, or a YAML list of such rules.",
    ),
]
_COLUMNS = ("step", "rank", "node", "stage", "segment", "seconds")
_MAX_ROWS = 40
_MAX_ODD = 0.1  # share of characters that no text has


@app.command(
    epilog="Examples: megascale analyze logs rank-3.log kern.log ; "
    "journalctl -k | megascale analyze logs - --json"
)
def logs(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Plain logs, or JSON lines with a `text` field; - is standard input.",
            show_default=False,
        ),
    ],
    rules: RulesOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Classify every record: user code, GPU, network, storage, host, framework, data, memory, or benign."""
    table = _load_rules(rules)
    if as_json:
        for name in files:
            for found in _classify(name, table):
                echo(json.dumps(_as_json(found) | ({"file": name} if len(files) > 1 else {})))
        return
    _print_summary(files, table)


@app.command(epilog="Example: megascale analyze stragglers timings.csv --json")
def stragglers(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="CSV with the header step,rank,node,stage,segment,seconds, or Parquet with these columns; "
            "- is CSV on standard input.",
            show_default=False,
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Find slow nodes, slow links, uneven stages, uneven sequences, host pauses and data stalls."""
    from megascale.core.stats.stragglers import analyze

    trace = _read_trace(file)
    verdicts = analyze(trace)
    if as_json:
        document = {
            "steps": len(trace.steps),
            "ranks": len(trace.topology.ranks),
            "verdicts": [
                {
                    "kind": verdict.kind,
                    "node": verdict.node,
                    "ranks": list(verdict.ranks),
                    "slowdown": verdict.slowdown,
                    "since_step": verdict.since_step,
                    "confidence": verdict.confidence,
                    "reason": verdict.reason,
                }
                for verdict in verdicts
            ],
        }
        echo(json.dumps(document, indent=2))
        return
    for verdict in verdicts:
        head = f"{verdict.kind:16} {verdict.node or '-':16} confidence {verdict.confidence:.2f}"
        echo(f"{head}  {verdict.reason}")
    if not verdicts:
        echo(f"nothing stands out in {len(trace.steps)} steps of {len(trace.topology.ranks)} ranks")


@app.command("rules", epilog="Example: megascale analyze rules --json")
def list_rules(rules: RulesOption = None, as_json: JsonFlag = False) -> None:
    """List the rules in the order in which they are tried."""
    table = _load_rules(rules)
    for rule in table.rules:
        facts = {"id": rule.id, "class": rule.category, "action": rule.action, "scope": rule.scope}
        if as_json:
            more = {"pattern": rule.pattern.pattern, "source": rule.source, "example": rule.example}
            echo(json.dumps(facts | more))
        else:
            echo(f"{rule.id:24} {rule.category:10} {rule.action:13} {rule.scope:12} {rule.source}")


def _load_rules(path: Path | None) -> RuleSet:
    from megascale.core.rules import rule_set
    from megascale.job import load_log_rules
    from megascale.job.log_rules import log_rules

    return rule_set(log_rules(load_log_rules(path)) if path is not None else ())


def _classify(name: str, table: RuleSet) -> Iterator[RecordVerdict]:
    from megascale.core.rules import classify_records

    if name == "-":
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        yield from classify_records(sys.stdin, table)
        return
    try:
        _refuse_binary(Path(name))
        with Path(name).open(encoding="utf-8", errors="replace") as lines:
            yield from classify_records(lines, table)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def _refuse_binary(path: Path) -> None:
    """A compressed file would pass as a log without events. A pipe is not looked at, it can be read once."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(4096)
    text = head.decode("utf-8", errors="replace")
    odd = sum(mark == "\ufffd" or (mark < " " and mark not in "\t\n\v\f\r\b\a\x1b") for mark in text)
    if odd > _MAX_ODD * len(text):
        raise InputError(
            f"{path}: is not text; decompress it first, e.g. zcat {path} | megascale analyze logs -"
        )


def _as_json(found: RecordVerdict) -> dict[str, Any]:
    verdict = found.verdict
    document: dict[str, Any] = {
        "record": found.record,
        "class": verdict.category,
        "action": verdict.action,
        "rule": verdict.rule,
        "node": verdict.node,
    }
    if verdict.rule is not None:
        document["scope"] = verdict.scope
    if verdict.peer is not None:
        document["peer"] = verdict.peer
    if verdict.rank is not None:
        document["rank"] = verdict.rank
    return document


def _print_summary(files: list[str], table: RuleSet) -> None:
    from rich.table import Table

    from megascale.cli.safe_console import safe_console

    counts: Counter[str] = Counter()
    first: dict[str, Any] = {}
    nodes: dict[str, Counter[str]] = {}
    total = 0
    for name in files:
        for found in _classify(name, table):
            total += 1
            verdict = found.verdict
            if verdict.rule is None or verdict.category == "benign":
                continue
            counts[verdict.rule] += 1
            first.setdefault(verdict.rule, verdict)
            if verdict.node:
                nodes.setdefault(verdict.rule, Counter())[verdict.node] += 1
    if not counts:
        echo(f"{total:,} records, nothing but benign lines")
        return
    shown = Table("class", "action", "scope", "rule", "records", "nodes", "first line")
    order = sorted(counts, key=lambda rule: (-first[rule].weight, -counts[rule]))
    for rule in order[:_MAX_ROWS]:
        verdict = first[rule]
        names = ", ".join(node for node, _ in nodes.get(rule, Counter()).most_common(3))
        shown.add_row(
            verdict.category,
            verdict.action,
            verdict.scope,
            rule,
            f"{counts[rule]:,}",
            names,
            verdict.line.strip()[:100],
        )
    safe_console(width=None if sys.stdout.isatty() else 160).print(shown)
    echo(f"{total:,} records, {sum(counts.values()):,} of them matter")


def _read_trace(name: str) -> Trace:
    if name.endswith((".parquet", ".pq")):
        return _read_parquet(Path(name))
    if name == "-":
        return _read_csv(sys.stdin, "standard input")
    try:
        with Path(name).open(encoding="utf-8", newline="") as lines:
            return _read_csv(lines, name)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _read_csv(lines: Iterable[str], name: str) -> Trace:
    import csv

    from megascale.core.stats.trace import TraceBuilder

    reader = csv.reader(lines)
    header = [column.strip() for column in next(reader, [])]
    if not header:
        raise InputError(f"{name}: is empty; expected the header {','.join(_COLUMNS)} and rows")
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise InputError(
            f"{name}: column {missing[0]!r} is missing; expected the header {','.join(_COLUMNS)}"
        )
    at = [header.index(column) for column in _COLUMNS]
    builder = TraceBuilder()
    for row in reader:
        if row:
            _add_row(builder, row, at, f"{name}:{reader.line_num}")
    return _build(builder, name)


def _build(builder: TraceBuilder, name: str) -> Trace:
    try:
        return builder.build()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _add_row(builder: TraceBuilder, row: list[str], at: list[int], where: str) -> None:
    try:
        step, rank, node, stage, segment, seconds = (row[index].strip() for index in at)
    except IndexError as error:
        raise DataError(f"{where}: {len(row)} fields, expected {','.join(_COLUMNS)}") from error
    try:
        numbers = int(step), int(rank), int(stage), float(seconds)
    except ValueError as error:
        raise DataError(
            f"{where}: {error}; expected whole step, rank and stage and seconds as a number"
        ) from error
    builder.add(
        numbers[0], numbers[1], node=node, stage=numbers[2], segment=segment, seconds=numbers[3], where=where
    )


def _read_parquet(path: Path) -> Trace:
    import pyarrow as arrow
    from pyarrow import parquet

    from megascale.core.stats.trace import TraceBuilder

    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(_COLUMNS)}")
    builder = TraceBuilder()
    columns = [table.column(column).to_pylist() for column in _COLUMNS]
    for index, (step, rank, node, stage, segment, seconds) in enumerate(zip(*columns, strict=True)):
        where = f"{path}: row {index}"
        if None in (step, rank, node, stage, segment, seconds):
            raise DataError(f"{where}: a value is missing")
        builder.add(
            int(step),
            int(rank),
            node=str(node),
            stage=int(stage),
            segment=str(segment),
            seconds=float(seconds),
            where=where,
        )
    return _build(builder, str(path))
