"""`megascale logs`: what the ranks of a local run print."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from megascale.cli.local_job import JobArgument, RunsOption
from megascale.cli.output import echo
from megascale.errors import InputError
from megascale.observe.rundir import log_part
from megascale.observe.text import shown_text

if TYPE_CHECKING:
    from megascale.observe.rundir import RunDir

EPILOG: Final = (
    "Examples: megascale logs quickstart -f | megascale logs quickstart --rank 1 --attempt 2 | "
    "megascale logs runs/quickstart --tail 20"
)
_LOOK_S: Final = 0.25
_READ_BYTES: Final = 256 * 1024
_LINE_BYTES: Final = 64 * 1024
_TAIL_BYTES: Final = 4 << 20
_RANK_FILE: Final = re.compile(r"rank-(\d+)\.log")
_ATTEMPT_FOLDER: Final = re.compile(r"attempt-(\d+)")


def logs(
    job: JobArgument,
    rank: Annotated[
        list[int] | None, typer.Option("--rank", min=0, help="Only this rank; repeatable. Default: all.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="Launch of the ranks. Default: the newest.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the job ends, from attempt to attempt.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Begin with the last lines of each rank only.")
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Print the logs of a local run's ranks, each line with its rank where there are several.

    Where the files lie is said on stderr. Logs of the driver and the agents are beside them. With -f and
    --attempt, following ends with that attempt. Exit code 2 when there is no such log.
    """
    from megascale.cli.local_job import INTERRUPTED, find_run, standing

    run = find_run(runs, job)
    printer = LogPrinter(run, frozenset(rank or ()), sys.stdout.buffer, _say, tail)
    chosen = attempt or newest_attempt(run)
    if attempt is not None or not follow:
        check_there(run, chosen, rank or [])
    if not follow:
        printer.show(chosen)
        printer.finish()
        return

    def is_over() -> bool:
        found = standing(run)
        newer = attempt is not None and newest_attempt(run) > attempt
        return newer or found.ended or found.state == INTERRUPTED

    try:
        follow_logs(printer, is_over, lambda: time.sleep(_LOOK_S), attempt)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def attempts_of(run: RunDir) -> list[int]:
    """Return the attempts that have a folder of logs, oldest first."""
    found = (_ATTEMPT_FOLDER.fullmatch(path.name) for path in run.logs(0).parent.glob("attempt-*"))
    return sorted(int(match[1]) for match in found if match)


def newest_attempt(run: RunDir) -> int:
    """Return the newest attempt that has logs, 0 without any."""
    return max(attempts_of(run), default=0)


def ranks_of(run: RunDir, attempt: int) -> list[int]:
    """Return the ranks that have a log in an attempt, in order."""
    found = (_RANK_FILE.fullmatch(path.name) for path in run.logs(attempt).glob("rank-*.log"))
    return sorted(int(match[1]) for match in found if match)


def check_there(run: RunDir, attempt: int, ranks: list[int]) -> None:
    """Do nothing where the attempt has logs of these ranks.

    Raises:
        InputError: it has not; names those that are there.
    """
    known = attempts_of(run)
    if not known:
        raise InputError(
            f"{run.root.name}: no rank was launched yet; logs of driver and agents: {run.root / 'logs'}"
        )
    if attempt not in known:
        raise InputError(f"--attempt {attempt}: no such logs; there are attempts {_listed(known)}")
    there = ranks_of(run, attempt)
    for rank in ranks:
        if rank not in there:
            raise InputError(
                f"--rank {rank}: no log in attempt {attempt}; there are ranks {_listed(there) or 'none'}"
            )


def follow_logs(
    printer: LogPrinter, is_over: Callable[[], bool], wait: Callable[[], None], attempt: int | None
) -> None:
    """Print what comes, from attempt to attempt, until there is no more to come.

    Args:
        is_over: whether nothing more will be written; wait: returns when it is time to look again.
        attempt: only this one; None for the newest and those after it.
    """
    while True:
        over = is_over()
        for one in [attempt] if attempt else _to_show(printer):
            printer.show(one)
        if over:
            printer.finish()
            return
        wait()


def _to_show(printer: LogPrinter) -> list[int]:
    """The newest attempt; once one is shown, it and those that came after it."""
    there = attempts_of(printer.run)
    return [one for one in there if one >= printer.attempt] if printer.attempt else there[-1:]


class LogPrinter:
    """Prints what is new in the logs of one attempt at a time.

    Args:
        ranks: those to print, empty for all.
        say: prints a line for people about the logs.
        tail: lines per rank to begin with, None for all.
    """

    def __init__(
        self, run: RunDir, ranks: frozenset[int], out: BinaryIO, say: Callable[[str], None], tail: int | None
    ) -> None:
        self.run, self._ranks, self._out, self._say, self._tail = run, ranks, out, say, tail
        self._fit = _shown_line if out.isatty() else bytes
        self._attempt = 0
        self._readers: dict[int, LineReader] = {}

    @property
    def attempt(self) -> int:
        """The attempt that is printed, 0 before the first."""
        return self._attempt

    def show(self, attempt: int) -> None:
        """Print the new lines of an attempt, after the last of the one before."""
        if attempt != self._attempt:
            self.finish()
            self._begin(attempt)
        self._print_new()

    def finish(self) -> None:
        """Print what is left, with what follows the last line end."""
        self._print_new()
        for rank, reader in sorted(self._readers.items()):
            self._write(rank, reader.rest())

    def _begin(self, attempt: int) -> None:
        if self._attempt:
            self._tail = None
        self._attempt, self._readers = attempt, {}
        self._say(f"attempt {attempt}: {self.run.logs(attempt)}/rank-*.log")

    def _print_new(self) -> None:
        for rank in ranks_of(self.run, self._attempt):
            if rank not in self._readers and (not self._ranks or rank in self._ranks):
                self._readers[rank] = LineReader(self.run.rank_log(self._attempt, rank), self._tail)
        for rank, reader in sorted(self._readers.items()):
            self._write(rank, reader.new_lines())

    def _write(self, rank: int, lines: Iterator[bytes]) -> None:
        prefix = f"rank {rank}: ".encode() if len(self._readers) > 1 else b""
        for line in lines:
            self._out.write(prefix + self._fit(line) + b"\n")
        self._out.flush()


class LineReader:
    """Reads a growing log line by line, from part to part; a line of more than 64 KiB comes in pieces.

    Args:
        first: the log's first part; `log_part` names the others, of which some may have been deleted.
        tail: number of last lines of the newest part to begin with, None for all; at most 4 MiB are searched
            for them.
    """

    def __init__(self, first: Path, tail: int | None = None) -> None:
        self._first = first
        self._part = (later_parts(first, 0) or [0])[-1] if tail is not None else 0
        self._at = _start_of_tail(self._path, tail) if tail is not None else 0
        self._partial = b""

    @property
    def _path(self) -> Path:
        return log_part(self._first, self._part)

    def new_lines(self) -> Iterator[bytes]:
        """Whole lines that were added since the last call."""
        # A part gets no more lines once there is a later one.
        later = later_parts(self._first, self._part)
        yield from self._lines_of_part()
        for part in later:
            self._part, self._at = part, 0
            yield from self._lines_of_part()

    def _lines_of_part(self) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            while data := file.read(_READ_BYTES):
                self._at += len(data)
                *lines, self._partial = (self._partial + data).split(b"\n")
                yield from lines
                if len(self._partial) > _LINE_BYTES:
                    yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """What came after the last line end."""
        partial, self._partial = self._partial, b""
        if partial:
            yield partial


def later_parts(first: Path, part: int) -> list[int]:
    """Return the numbers of a log's parts after `part` that exist, in order."""
    found = (
        path.name.removeprefix(f"{first.stem}.").removesuffix(first.suffix)
        for path in first.parent.glob(f"{first.stem}.*{first.suffix}")
    )
    return sorted(int(number) for number in found if number.isdigit() and int(number) > part)


def _start_of_tail(path: Path, lines: int) -> int:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - _TAIL_BYTES))
        data = file.read(end - start)
    at = len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, max(0, at - 1)) + 1
    return start + at if lines else end


def _shown_line(line: bytes) -> bytes:
    """The line without what would steer a terminal."""
    return shown_text(line.decode(errors="replace")).encode()


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _say(text: str) -> None:
    echo(text, err=True)
