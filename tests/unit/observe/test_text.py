from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megascale.cli.safe_console import safe_console
from megascale.observe.text import as_html, one_line, shown, shown_text

HOSTILE = [
    ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    ("\x1b[2J", r"\x1b[2J"),
    ("a\x9b31mb", r"a\x9b31mb"),
    ("\u202etxt.exe\u2066", r"\u202etxt.exe\u2066"),
    ("a\nb\rc\u2028d", r"a\nb\rc\u2028d"),
    ("\U000e0041\ud800", r"\U000e0041\ud800"),
    ("it's [/red] \\ é 語", "it's [/red] \\ é 語"),
]


@pytest.mark.parametrize(("text", "expected"), HOSTILE)
def test_what_steers_a_terminal_becomes_visible(text: str, expected: str) -> None:
    assert one_line(text) == expected


@given(st.text(), st.integers(4, 40))
def test_a_line_is_printable_and_bounded(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    assert all(
        unicodedata.category(each) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for each in line if each != "\t"
    )
    line.encode()


def test_long_text_is_cut_before_it_is_escaped() -> None:
    assert len(one_line("\x1b" * 50_000_000, 100)) == 100
    assert one_line("x" * 101, 100) == "x" * 97 + "..."
    assert one_line("x" * 100, 100) == "x" * 100


def test_text_keeps_its_lines() -> None:
    assert shown_text("a\n\tb\x1bc") == "a\n\tb\\x1bc"


def test_every_text_and_name_of_a_document() -> None:
    document: dict[str, Any] = {"a\x1b": ["\x9b", {"b": "\n"}], "n": 1, "f": 1.5, "none": None, "yes": True}
    assert shown(document) == {"a\\x1b": ["\\x9b", {"b": "\\n"}], "n": 1, "f": 1.5, "none": None, "yes": True}


def test_html() -> None:
    assert as_html('<script>"\x1b') == "&lt;script&gt;&quot;\\x1b"


@pytest.mark.parametrize("make", [str, Text])
def test_a_console_shows_any_text_literally(make: type[str] | type[Text]) -> None:
    stream = io.StringIO()
    table = Table("[/red]", box=None, title="[/title]\x1b")
    table.add_row(make("[/blue] :smile: \x1b]52;c;eA==\x07 \x9b2J"))
    safe_console(file=stream, width=120).print(Panel(table, title=Text("[/i]\x1bc")))
    out = stream.getvalue()
    assert "[/red]" in out
    assert "[/blue] :smile: \\x1b]52;c;" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)


def test_styles_still_reach_a_terminal() -> None:
    console = safe_console(file=io.StringIO())
    with console.capture() as found:
        console.print(Text("x", style="bold"), end="")
    plain = found.get()
    styled = list(console.render(Text("x", style="bold")))
    assert (plain, str(styled[0].style)) == ("x", "bold")


def test_commands_write_through_nothing_else() -> None:
    """`typer.echo` and `Console` are used only by what makes text safe."""
    folder = Path(__file__).parents[3] / "megascale/cli"
    raw = re.compile(r"typer\.echo\(|\bConsole\(")
    found = {path.name for path in folder.glob("*.py") if raw.search(path.read_text())}
    assert found == {"output.py"}
