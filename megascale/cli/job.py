"""`megascale job`: check manifests and read about their fields."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megascale.cli.output import echo
from megascale.cli.words import plural
from megascale.errors import InputError, ManifestError, ManifestIssue

if TYPE_CHECKING:
    from megascale.job import TrainingJob
    from megascale.job.lookup import Explained

app = typer.Typer(no_args_is_help=True, help="Check TrainingJob manifests and read about their fields.")

_OBVIOUS = {"text", "true or false", "a list", "a mapping"}
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(
    epilog="Examples: megascale job validate examples/quickstart.yaml | "
    "megascale job validate job.yaml --here --set spec.nodes=4"
)
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Manifests in YAML or JSON; - is stdin.")
    ],
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Also check data, program, checkpoint, devices and memory of this machine."
        ),
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds runs/<job>/, for --here.")] = Path(
        "runs"
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A field that counts instead of the files'; repeatable."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check manifests; nothing is started. Exit code 2 if one is wrong.

    With --here it also says what it could not check.
    """
    reports = [_check(file, changes or [], runs if here else None) for file in files]
    if as_json:
        document = {"valid": not any(report["issues"] for report in reports), "files": reports}
        echo(json.dumps(document, indent=2))
    for report in reports if not as_json else ():
        _print_report(report)
    if any(report["issues"] for report in reports):
        raise typer.Exit(InputError.exit_code)


@app.command(epilog="Example: megascale job schema > trainingjob.schema.json")
def schema() -> None:
    """Print the manifest's JSON schema, for editors and other tools."""
    from megascale.job import TrainingJob

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TrainingJob.model_json_schema()
    echo(json.dumps(document, indent=2))


@app.command(
    epilog="Examples: megascale job explain spec.checkpoint | megascale job explain spec.faults.kind --json"
)
def explain(
    field: Annotated[
        str, typer.Argument(metavar="FIELD", help="Dotted path, such as spec.runtime.megatron.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say what a field of the manifest means, its type, bounds and default."""
    from megascale.job.lookup import look_up

    explained = look_up(field)
    if as_json:
        document = dataclasses.asdict(explained.field)
        document["fields"] = [dataclasses.asdict(child) for child in explained.children]
        echo(json.dumps(document, indent=2))
    else:
        _print_explained(explained)


def _check(file: str, changes: list[str], runs: Path | None) -> dict[str, Any]:
    """Result for one file: `file`, `valid`, `summary`, `issues`, and with `runs` what was found `here`."""
    from megascale.job import load_job, parse_job

    name = "stdin" if file == "-" else file
    try:
        if file == "-":
            job = parse_job(sys.stdin.buffer.read(), file=name, changes=changes)
        else:
            job = load_job(Path(file), changes=changes)
    except ManifestError as error:
        issues = [dataclasses.asdict(issue) for issue in error.issues]
        return {"file": name, "valid": False, "summary": None, "issues": issues}
    report = {"file": name, "valid": True, "summary": _summary(job), "issues": []}
    return report if runs is None else report | _inspect(job, runs)


def _inspect(job: TrainingJob, runs: Path) -> dict[str, Any]:
    """`valid`, `issues` and `here` of a job whose manifest is right."""
    from megascale.cli.data import progress_bar
    from megascale.cli.here import inspect
    from megascale.observe.rundir import RunDir

    with progress_bar("reading token ids") as on_progress:
        found = inspect(job, RunDir(runs / job.metadata.name), on_progress)
    here = {"notes": found.notes, "checked": found.checked, "notChecked": found.not_checked}
    return {
        "valid": not found.issues,
        "issues": [dataclasses.asdict(issue) for issue in found.issues],
        "here": here,
    }


def _print_report(report: dict[str, Any]) -> None:
    if report["valid"]:
        echo(f"{report['file']}: valid: {report['summary']}")
    here = report.get("here", {})
    for key, title in (("notes", "note"), ("checked", "checked"), ("notChecked", "not checked")):
        for line in here.get(key, ()):
            echo(f"  {title}: {line}")
    if report["valid"]:
        return
    for issue in report["issues"]:
        echo(str(ManifestIssue(**issue)), err=True)
    count = len(report["issues"])
    echo(f"{report['file']}: {plural(count, 'problem')}, nothing was started", err=True)


def _summary(job: TrainingJob) -> str:
    """One line of what a job would do."""
    spec = job.spec
    spares = "spares as needed" if spec.spare_nodes == "auto" else plural(spec.spare_nodes, "spare")
    ranks = f"nodes {spec.nodes} x ranksPerNode {spec.ranks_per_node} = {plural(spec.world_size, 'rank')}"
    text = f"job {job.metadata.name}: {plural(spec.steps, 'step')} on {ranks}, {spares}"
    megatron = spec.runtime.megatron
    if megatron is None:
        return text
    layout, data = megatron.parallelism, megatron.data
    sizes = {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "data": layout.data,
    }
    parts = (
        " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one copy of the model"
    )
    ramp = f"{data.batch_ramp.start} to " if data.batch_ramp else ""
    samples = f"{ramp}{plural(data.global_batch, 'sample')} of {plural(data.sequence_length, 'token')}"
    return f"{text}; {parts}; {samples} a step"


def _print_explained(explained: Explained) -> None:
    field, width = explained.field, min(shutil.get_terminal_size().columns, 100)
    echo(f"FIELD:    {field.path} <{field.type}>")
    if not explained.children:
        echo(f"ALLOWED:  {field.expected}")
    if field.path != "TrainingJob":
        echo(f"DEFAULT:  {'none, the field is required' if field.default is None else field.default}")
    echo(f"\n{_indented(field.description, '  ', width)}")
    if explained.children:
        echo("\nFIELDS:")
    for child in explained.children:
        name = child.path.rpartition(".")[2]
        default = "required" if child.default is None else f"default {child.default}"
        echo(f"  {name} <{child.type}>, {default}")
        echo(_indented(child.description, "      ", width))
        if not child.fields and child.expected not in _OBVIOUS:
            echo(f"      Allowed: {child.expected}")


def _indented(text: str, indent: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
