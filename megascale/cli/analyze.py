"""`megascale analyze`: classifies log lines, and finds stragglers in timings."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megascale.cli.output import echo
from megascale.cli.words import plural
from megascale.errors import DataError, InputError

if TYPE_CHECKING:
    from megascale.core.rules import LogRule, RecordVerdict, RuleSet, Verdict
    from megascale.core.stats.trace import Trace, TraceBuilder

app = typer.Typer(no_args_is_help=True, help="Find out what logs and timings say about a run.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
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
_MAX_UNEXPLAINED = 20  # kinds of unexplained lines that are shown apart
_SHAPE_CHARACTERS = 200
_NUMBERS = re.compile(r"\d+")
_MAX_ODD = 0.1  # share of characters that no text has


@app.command(
    epilog="Examples: megascale analyze logs rank-3.log kern.log ; "
    "journalctl -kf | megascale analyze logs - --jsonl"
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
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one line of JSON per record, as records come.")
    ] = False,
) -> None:
    """Classify every record: user code, GPU, network, storage, host, framework, data, memory, or benign.

    What looks like an error and matches no rule is unknown.
    """
    table = _load_rules(rules)
    if as_json and as_jsonl:
        raise InputError("--json and --jsonl: give one of them")
    if as_json or as_jsonl:
        _print_records(files, table, as_lines=as_jsonl)
    else:
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
        steps, ranks = plural(len(trace.steps), "step"), plural(len(trace.topology.ranks), "rank")
        echo(f"nothing stands out in {steps} of {ranks}")


@app.command("rules", epilog="Example: megascale analyze rules --json")
def list_rules(rules: RulesOption = None, as_json: JsonFlag = False) -> None:
    """List the rules in the order in which they are tried."""
    table = _load_rules(rules)
    if as_json:
        echo(json.dumps({"rules": [_rule_document(rule) for rule in table.rules]}, indent=2))
        return
    for rule in table.rules:
        echo(f"{rule.id:24} {rule.category:10} {rule.action:13} {rule.scope:12} {rule.source}")


def _rule_document(rule: LogRule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "class": rule.category,
        "action": rule.action,
        "scope": rule.scope,
        "pattern": rule.pattern.pattern,
        "source": rule.source,
        "example": rule.example,
    }


def _print_records(files: list[str], table: RuleSet, *, as_lines: bool) -> None:
    """Records as lines of JSON, or all within one document, which is written as they come."""
    found = (
        json.dumps(_as_json(record) | ({"file": name} if len(files) > 1 else {}))
        for name in files
        for record in _classify(name, table)
    )
    if as_lines:
        for line in found:
            echo(line)
        return
    separator = '{"records": ['
    for line in found:
        sys.stdout.write(f"{separator}\n{line}")
        separator = ","
    sys.stdout.write("\n]}\n" if separator == "," else f"{separator}]}}\n")


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


class _Summary:
    """Counts what a log says: each rule that matters, and lines of errors that no rule explains."""

    def __init__(self) -> None:
        self.total = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.first: dict[tuple[str, str], Verdict] = {}
        self._nodes: dict[tuple[str, str], Counter[str]] = {}
        self._shapes: set[str] = set()

    def add(self, verdict: Verdict) -> None:
        self.total += 1
        if verdict.rule is None or verdict.category == "benign":
            return
        key = (verdict.rule, self._shape(verdict) if verdict.category == "unknown" else "")
        self.counts[key] += 1
        self.first.setdefault(key, verdict)
        if verdict.node:
            self._nodes.setdefault(key, Counter())[verdict.node] += 1

    def _shape(self, verdict: Verdict) -> str:
        """The line without its numbers: lines of one kind share a row. Few kinds are told apart."""
        shape = _NUMBERS.sub("0", verdict.line)[:_SHAPE_CHARACTERS]
        if shape in self._shapes or len(self._shapes) < _MAX_UNEXPLAINED:
            self._shapes.add(shape)
            return shape
        return ""

    def rows(self) -> list[tuple[str, ...]]:
        order = sorted(self.counts, key=lambda key: (-self.first[key].weight, -self.counts[key]))
        return [self._row(key) for key in order[:_MAX_ROWS]]

    def _row(self, key: tuple[str, str]) -> tuple[str, ...]:
        verdict = self.first[key]
        names = ", ".join(node for node, _ in self._nodes.get(key, Counter()).most_common(3))
        facts = (verdict.category, verdict.action, verdict.scope, key[0], f"{self.counts[key]:,}", names)
        return (*facts, verdict.line.strip()[:100])

    def advice(self, table: RuleSet) -> list[str]:
        rules = [table.named(rule) for rule in dict.fromkeys(rule for rule, _ in self.counts)]
        return [f"{rule.id}: {rule.advice}" for rule in rules if rule is not None and rule.advice]

    @property
    def unexplained(self) -> int:
        return sum(count for key, count in self.counts.items() if self.first[key].category == "unknown")


def _print_summary(files: list[str], table: RuleSet) -> None:
    from rich.table import Table

    from megascale.cli.safe_console import safe_console

    summary = _Summary()
    for name in files:
        for found in _classify(name, table):
            summary.add(found.verdict)
    if not summary.counts:
        echo(f"{summary.total:,} records, nothing but benign lines")
        return
    shown = Table("class", "action", "scope", "rule", "records", "nodes", "first line")
    for row in summary.rows():
        shown.add_row(*row)
    safe_console(width=None if sys.stdout.isatty() else 160).print(shown)
    for text in summary.advice(table):
        echo(text)
    matter = sum(summary.counts.values()) - summary.unexplained
    unknown = (
        f", {summary.unexplained:,} look like errors that no rule explains" if summary.unexplained else ""
    )
    echo(f"{summary.total:,} records, {matter:,} of them matter{unknown}")


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
