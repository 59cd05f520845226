"""`megascale completion`: scripts that complete commands and options in a shell."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated, Final

import typer

EPILOG: Final = (
    "Examples: megascale completion bash > ~/.local/share/bash-completion/completions/megascale | "
    "megascale completion zsh > ~/.zfunc/_megascale | "
    "megascale completion fish > ~/.config/fish/completions/megascale.fish"
)
_PROGRAM: Final = "megascale"


class Shell(StrEnum):
    """Shells for which there is a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)]
) -> None:
    """Print the script that makes a shell complete commands and options; the shell reads it at its start."""
    # what typer does in a process of its own when the shell asks for the script
    os.environ[f"_{_PROGRAM.upper()}_COMPLETE"] = f"source_{shell}"
    context.find_root().command.main(args=[], prog_name=_PROGRAM)
