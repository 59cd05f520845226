"""Measures how fast an agent classifies log text: MB/s over ordinary text, floods and the lines of each rule.

    python benchmarks/log_rules.py [--seconds 1.0] [--rules] [--json]

An agent spends at most a quarter of a core on it; what is above that is counted and not classified. Ordinary
text is what training scripts print. `--rules` also measures, for each rule, text in which every line is the
rule's example with other numbers, which is the worst kind: no line can be left out. One core, text in memory.
Of a read an agent reports at most 16 matches, and does not classify what follows them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from megascale.agent.logtail import LogTail
from megascale.core.rules import BUILTIN

_CHUNK_BYTES: Final = 255 << 10
_TARGET: Final = {"ordinary": 50.0, "worst": 20.0}


def _numbers(rng: random.Random) -> Callable[[re.Match[str]], str]:
    return lambda found: "".join(rng.choice("0123456789") for _ in found[0])


def texts(rng: random.Random) -> dict[str, bytes]:
    """Text of 256 KiB of each kind."""
    kinds: dict[str, Callable[[int], str]] = {
        "ordinary": lambda n: (
            f"2026-11-30 17:20:{n % 60:02d},123 INFO trainer: step {n} loss {rng.random():.4f} lr 3.0e-4"
            f" grad_norm {rng.random():.3f} tokens/s {rng.randrange(10**6)} mfu 0.41"
        ),
        "hexadecimal, 2 kB": lambda _n: "-".join(f"{rng.randrange(256):02x}" for _ in range(660)),
        "progress bar": lambda n: f"\r{n % 100}%|{'#' * (n % 50)}| {n}/10000 [00:12<12:00, 8.1it/s]",
        "letters": lambda _n: "".join(rng.choices("etaoinshrdlu ", k=200)),
        "frames": lambda n: f'  File "model.py", line {n}, in forward',
        "examples of all rules": lambda n: BUILTIN[n % len(BUILTIN)].example,
    }
    return {name: _text(line) for name, line in kinds.items()}


def of_rules(rng: random.Random) -> dict[str, bytes]:
    """For each rule text of its example with other numbers in every line."""
    digits = re.compile(r"(?<=[0-9])[0-9]+")
    return {
        rule.id: _text(lambda _n, rule=rule: digits.sub(_numbers(rng), rule.example))  # type: ignore[misc]
        for rule in BUILTIN
    }


def _text(line: Callable[[int], str]) -> bytes:
    lines: list[bytes] = []
    size = 0
    while size < _CHUNK_BYTES:
        lines.append(line(len(lines)).encode() + b"\n")
        size += len(lines[-1])
    return b"".join(lines)


def rate(text: bytes, seconds: float) -> float:
    """MB/s of CPU time at which an agent finds the matches in `text`, a log file in memory."""
    done, began = 0, time.thread_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        log = Path(folder) / "rank-0.log"
        log.write_bytes(text)
        while time.thread_time() - began < seconds:
            tail = LogTail(log)
            tail.new_matches(seconds)
            done += log.stat().st_size - tail.skipped_bytes
    return done / 1e6 / (time.thread_time() - began)


def main() -> int:
    """Print MB/s of each kind of text; the exit code is 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds of each measurement")
    parser.add_argument("--rules", action="store_true", help="also measure the lines of each rule")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(0)
    found = {name: rate(text, arguments.seconds) for name, text in texts(rng).items()}
    if arguments.rules:
        found |= {name: rate(text, arguments.seconds / 10) for name, text in of_rules(rng).items()}
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in sorted(found.items(), key=lambda item: item[1]):
            print(f"{value:8.2f} MB/s  {name}")
    missed = found["ordinary"] < _TARGET["ordinary"] or min(found.values()) < _TARGET["worst"]
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
