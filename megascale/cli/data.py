"""`megascale data`: make token files from text and look into them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from megascale.cli.output import echo

_LINE_EVERY_S: Final = 30.0

app = typer.Typer(no_args_is_help=True, help="Make token files from text and look into them.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(
    epilog="Examples: megascale data prepare python-stdlib --output data/python-stdlib | "
    "megascale data prepare crawl/ --glob '*.jsonl.zst' --tokenizer data/bpe.json --output data/crawl"
)
def prepare(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="Files, folders, or python-stdlib.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PREFIX", help="Makes PREFIX.bin and PREFIX.idx.")
    ],
    glob: Annotated[
        list[str] | None, typer.Option("--glob", help="Take files in folders whose name matches; repeatable.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="byte, or a tokenizer.json (see train-tokenizer).")
    ] = "byte",
    text_key: Annotated[str, typer.Option("--text-key", help="Key of the text in JSONL files.")] = "text",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out documents that cannot be used, and count them.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that tokenize; 0 = one per CPU.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn text and JSONL (also .gz, .zst) into tokens in Megatron's indexed format; made once, then reused.

    A run that was killed is continued by running it again.
    """
    from megascale.data.parts import Recipe
    from megascale.data.prepare import as_json as described
    from megascale.data.prepare import prepare as make

    with progress_bar(f"preparing {output}") as on_progress:
        prepared = make(
            paths,
            output,
            globs=glob or ("*",),
            recipe=Recipe(tokenizer, text_key, skip_bad),
            workers=workers or len(os.sched_getaffinity(0)),
            force=force,
            on_progress=on_progress,
            notify=_say,
        )
    facts = prepared.description
    if as_json:
        echo(json.dumps({"prefix": str(output), "made": prepared.made} | described(facts), indent=2))
        return
    verb = "made" if prepared.made else "is there already, reused (--force makes it again)"
    left_out = f", {facts.skipped:,} documents left out" if facts.skipped else ""
    echo(f"{output}: {verb}: {facts.files:,} files, {facts.tokens:,} tokens{left_out}")


@app.command(
    "train-tokenizer",
    epilog="Example: megascale data train-tokenizer corpus/ --vocab-size 32000 --output data/bpe.json",
)
def train_tokenizer(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="Files, folders, or python-stdlib.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The tokenizer.json to write.")
    ],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=257, help="Token ids, end-of-document included.")
    ] = 32_000,
    glob: Annotated[
        list[str] | None, typer.Option("--glob", help="Take files in folders whose name matches; repeatable.")
    ] = None,
    text_key: Annotated[str, typer.Option("--text-key", help="Key of the text in JSONL files.")] = "text",
) -> None:
    """Learn byte-pair encoding from text, on this machine; documents that cannot be used are left out."""
    from megascale.data.training import train_bpe

    with progress_bar(f"reading for {output}") as on_progress:
        size = train_bpe(
            paths, output, vocab_size, globs=glob or ("*",), text_key=text_key, on_progress=on_progress
        )
    echo(f"{output}: {size:,} tokens; use it with --tokenizer {output} and model.vocabSize {size}")


@app.command(epilog="Example: megascale data info data/python-stdlib")
def info(
    prefix: Annotated[
        Path, typer.Argument(metavar="PREFIX", help="Path of the token files without .bin or .idx.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Print what token files hold, after checking that index and tokens fit together."""
    from megascale.data.indexed import IndexedTokens
    from megascale.data.prepare import as_json as described
    from megascale.data.prepare import describe

    prefix = prefix.with_suffix("") if prefix.suffix in {".bin", ".idx"} else prefix
    indexed = IndexedTokens.open(prefix)
    description = describe(prefix)
    document: dict[str, Any] = {
        "prefix": str(prefix),
        "documents": len(indexed.borders) - 1,
        "sequences": len(indexed.lengths),
        "tokens": len(indexed.tokens),
        "dtype": indexed.tokens.dtype.name,
        "binBytes": indexed.tokens.nbytes,
    } | (described(description) if description else {})
    if as_json:
        echo(json.dumps(document, indent=2))
        return
    for name, value in document.items():
        shown = (
            " ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
        )
        echo(f"{name:12} {shown}")
    echo("index and tokens fit together")


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (bytes done, bytes in all) behind a bar on stderr; plain lines when that is no terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from megascale.cli.safe_console import safe_console

    console = safe_console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(title)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain_lines(title: str, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """Progress for logs: a line on stderr every `_LINE_EVERY_S`, none for what is done sooner."""
    said_at = clock()

    def on_progress(done: int, total: int) -> None:
        nonlocal said_at
        if total and done < total and clock() - said_at >= _LINE_EVERY_S:
            said_at = clock()
            _say(f"{title}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {done / total:.0%}")

    return on_progress


def _say(line: str) -> None:
    echo(line, err=True)
