"""Writes to the terminal: text of jobs, nodes and files cannot steer it."""

from __future__ import annotations

import typer

from megascale.observe.text import shown_text


def echo(text: str, *, err: bool = False) -> None:
    """Write `text` to stdout, or to stderr if `err`."""
    typer.echo(shown_text(text), err=err)
