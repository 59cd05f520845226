"""How the help of every command shows its options."""

from __future__ import annotations

from typing import Any, Final

_INSTEAD_OF_COMPLETION: Final = frozenset({"install_completion", "show_completion"})


def tidy_help(program: Any) -> None:  # noqa: ANN401 - typer's classes of commands are private
    """Show switches without a type, for they take no value, in a program and its commands.

    typer's own options for completion are left out: `megascale completion` prints the same scripts.
    """
    program.params = [option for option in program.params if option.name not in _INSTEAD_OF_COMPLETION]
    _hide_switch_types(program)


def _hide_switch_types(command: Any, parent: Any = None) -> None:  # noqa: ANN401
    context = command.make_context(command.name, [], parent=parent, resilient_parsing=True)
    help_option = command.get_help_option(context)
    for option in (*command.params, *([help_option] if help_option else ())):
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for below in getattr(command, "commands", {}).values():
        _hide_switch_types(below, context)
