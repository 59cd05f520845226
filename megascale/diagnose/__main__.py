"""`python -m megascale.diagnose`: what runs on nodes and in pods; `megascale diagnose` is for people."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import sys
from pathlib import Path
from typing import Final

from megascale.diagnose.node import Options, check_node
from megascale.diagnose.serve import NodeServer
from megascale.diagnose.wire import parse_address, read_token, require_token
from megascale.diagnose.worker import FAULTS
from megascale.errors import MegascaleError
from megascale.observe.logs import LogContext, configure_logs

log = logging.getLogger(__name__)

_EPILOG: Final = """examples:
  python -m megascale.diagnose --light --local --json --termination-log /dev/termination-log
  python -m megascale.diagnose --light --local --ranks 8
  python -m megascale.diagnose --serve 10.0.0.7:7070 --token-file token
exit codes: 0 nothing is wrong (the JSON says healthy, or unknown), 1 the node is convicted, 2 bad usage,
  3 the checks cannot be started"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megascale.diagnose",
        description="Check this node, or wait to be tested together with others.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--local", action="store_true", help="check this node by itself")
    what.add_argument(
        "--serve", metavar="HOST:PORT", help="wait for `megascale diagnose --nodes`; port 0 = any"
    )
    parser.add_argument("--light", action="store_true", help="the light checks (the only ones so far)")
    parser.add_argument("--json", action="store_true", help="print the verdict as one line of JSON")
    parser.add_argument("--termination-log", type=Path, metavar="FILE", help="write the JSON there too")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="figures recorded on this node before")
    parser.add_argument("--record-baseline", type=Path, metavar="FILE", help="record this node's figures")
    parser.add_argument("--ranks", type=int, default=0, help="GPUs expected, or CPU ranks; 0 = what is there")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the products; 0 = all")
    parser.add_argument(
        "--name", default=platform.node(), help="what to call this node; default: its host name"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="shared token, needed off loopback")
    parser.add_argument("--once", action="store_true", help="with --serve: end after one test")
    parser.add_argument("--inject", choices=FAULTS, default="", help="a fault, to see what is said of it")
    return parser


def main() -> int:
    """Returns the exit code."""
    arguments = _parser().parse_args()
    configure_logs(LogContext("diagnose", node=arguments.name), as_json=arguments.termination_log is not None)
    try:
        return asyncio.run(_serve(arguments) if arguments.serve else _local(arguments))
    except MegascaleError as error:
        log.error("%s", error)
        unknown = {"node": arguments.name, "verdict": "unknown", "kind": "", "reason": str(error)[:1000]}
        _write_log(arguments.termination_log, json.dumps(unknown, separators=(",", ":")))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


async def _local(arguments: argparse.Namespace) -> int:
    report = await check_node(
        arguments.name,
        _options(arguments),
        baseline=arguments.baseline,
        record=arguments.record_baseline,
        progress=log.info,
    )
    text = report.message()
    _write_log(arguments.termination_log, text)
    print(text if arguments.json else f"{report.node}: {report.verdict}: {report.reason}")
    return 1 if report.verdict == "convicted" else 0


def _write_log(path: Path | None, text: str) -> None:
    if path:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            log.error("--termination-log %s: %s", path, error.strerror)


async def _serve(arguments: argparse.Namespace) -> int:
    host, port = parse_address(arguments.serve, "--serve")
    token = read_token(arguments.token_file)
    require_token(host, token)

    def on_ready(host: str, port: int) -> None:
        print(json.dumps({"node": arguments.name, "host": host, "port": port}), flush=True)

    await NodeServer(arguments.name, _options(arguments), token, once=arguments.once).run(
        host, port, on_ready
    )
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    return Options(ranks=arguments.ranks, threads=arguments.threads, fault=arguments.inject)


if __name__ == "__main__":
    sys.exit(main())
