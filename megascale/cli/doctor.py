"""`megascale doctor`: checks this node and recommends changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from megascale.cli.output import echo

if TYPE_CHECKING:
    from megascale.diagnose.nic import Finding

EPILOG: Final = "Examples: megascale doctor | megascale doctor --json | megascale doctor --folder /data/runs"
_STYLES: Final = {"ok": "green", "change": "bold red", "unknown": "yellow"}


def doctor(
    folder: Annotated[Path, typer.Option("--folder", help="Where runs and checkpoints go.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check limits, memory, clock, versions and network cards of this node; nothing is changed.

    Exit code 1 when something must change. "unknown" means that the node does not expose it.
    """
    from megascale.diagnose.doctor import Machine, examine

    report(examine(Machine(folder=folder)), as_json=as_json)


def report(findings: list[Finding], *, as_json: bool) -> None:
    """Print findings; ends the command with 1 when something must change."""
    from megascale.diagnose.doctor import verdict

    if as_json:
        document = {"verdict": verdict(findings), "findings": [dataclasses.asdict(f) for f in findings]}
        echo(json.dumps(document, indent=2))
    else:
        from rich.table import Column, Table
        from rich.text import Text

        from megascale.cli.safe_console import safe_console

        table = Table("check", "status", "value", Column("what to change", overflow="fold"), box=None)
        for finding in findings:
            style = _STYLES[finding.status]
            table.add_row(finding.check, Text(finding.status, style=style), finding.value, finding.advice)
        safe_console().print(table)
    if verdict(findings) == "change":
        raise typer.Exit(1)
