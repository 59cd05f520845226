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
from megascale.errors import InputError, ManifestError, ManifestIssue

if TYPE_CHECKING:
    from megascale.job import TrainingJob
    from megascale.job.lookup import Explained

app = typer.Typer(no_args_is_help=True, help="Check TrainingJob manifests and read about their fields.")

_OBVIOUS = {"text", "true or false", "a list", "a mapping"}
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(epilog="Example: megascale job validate examples/quickstart.yaml")
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Manifests in YAML or JSON; - is stdin.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Check manifests; nothing is started. Exit code 2 if one is wrong."""
    reports = [_check(file) for file in files]
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


def _check(file: str) -> dict[str, Any]:
    """Result for one file: `file`, `valid`, `summary`, `issues`."""
    from megascale.job import load_job, parse_job

    name = "stdin" if file == "-" else file
    try:
        job = parse_job(sys.stdin.buffer.read(), file=name) if file == "-" else load_job(Path(file))
    except ManifestError as error:
        issues = [dataclasses.asdict(issue) for issue in error.issues]
        return {"file": name, "valid": False, "summary": None, "issues": issues}
    return {"file": name, "valid": True, "summary": _summary(job), "issues": []}


def _print_report(report: dict[str, Any]) -> None:
    if report["valid"]:
        echo(f"{report['file']}: valid: {report['summary']}")
        return
    for issue in report["issues"]:
        echo(str(ManifestIssue(**issue)), err=True)
    count = len(report["issues"])
    echo(f"{report['file']}: {count} problem{'s' if count > 1 else ''}, nothing was started", err=True)


def _summary(job: TrainingJob) -> str:
    """One line of what a job would do."""
    spec = job.spec
    spares = "spares as needed" if spec.spare_nodes == "auto" else f"{spec.spare_nodes} spare"
    ranks = f"nodes {spec.nodes} x ranksPerNode {spec.ranks_per_node} = {spec.world_size} ranks"
    text = f"job {job.metadata.name}: {spec.steps} steps on {ranks}, {spares}"
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
    return f"{text}; {parts}; {ramp}{data.global_batch} samples of {data.sequence_length} tokens a step"


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
