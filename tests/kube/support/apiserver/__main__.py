"""`python -m apiserver --port 0 --dir DIR`: prints its URL when it serves, runs until SIGTERM.

SIGUSR1 compacts: watches that resume from an older resourceVersion then get 410.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from apiserver.running import Double, Options


def main() -> None:
    parser = argparse.ArgumentParser(prog="apiserver", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, required=True, help="where kubeconfig and audit.jsonl are written"
    )
    parser.add_argument("--port", type=int, default=0, help="0 = a free one")
    parser.add_argument("--bookmark-seconds", type=float, default=20.0, help="between bookmarks of a watch")
    parser.add_argument("--window", type=int, default=20_000, help="changes kept for watches, per resource")
    parser.add_argument(
        "--node-grace-seconds", type=float, default=40.0, help="silence of a node's Lease before NotReady"
    )
    parser.add_argument(
        "--orphan-grace-seconds", type=float, default=40.0, help="until pods of a deleted node are deleted"
    )
    given = parser.parse_args()
    options = Options(
        given.port, given.bookmark_seconds, given.window, given.node_grace_seconds, given.orphan_grace_seconds
    )
    asyncio.run(_serve(given.dir, options))


async def _serve(folder: Path, options: Options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Double(folder, options) as double:
        loop.add_signal_handler(signal.SIGUSR1, double.server.compact)
        print(double.url, flush=True)
        await stop.wait()


main()
