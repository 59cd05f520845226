"""The rich console of all commands: text of jobs, nodes and files is neither markup nor an escape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from megascale.observe.text import shown_text


def safe_console(*, file: IO[str] | None = None, width: int | None = None, stderr: bool = False) -> Console:
    """A console that takes text literally; styles are given as `rich.text.Text`."""
    return _SafeConsole(file=file, width=width, stderr=stderr, markup=False, emoji=False)


class _SafeConsole(Console):
    """Escapes what is not printed in any text; the sequences of styles and of the cursor are made later."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's own
        """Escaped before it is measured; in a `Text` it is escaped after, and may be cropped then."""
        return super().render_str(shown_text(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(shown_text(segment.text), segment.style)
