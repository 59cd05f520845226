"""`python -m kubelet --kubeconfig FILE --nodes 3 --dir DIR`: runs nodes until SIGTERM.

Prints the URL of its control port when every node is registered. Logs of containers are in DIR/logs.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

from rest import Cluster

from kubelet.control import ControlPort
from kubelet.host import Host, check_ca
from kubelet.node import Plan


def _pairs(texts: list[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="kubelet", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="volumes, logs")
    parser.add_argument("--nodes", type=int, default=3, help="how many")
    parser.add_argument("--prefix", default="node-", help="of node names; numbers from 1 follow")
    parser.add_argument(
        "--labels", nargs="*", default=[], help="KEY=VALUE for every node; {number} is the node's"
    )
    parser.add_argument(
        "--capacity", nargs="*", default=["cpu=8", "memory=32Gi", "pods=110"], help="RESOURCE=QUANTITY"
    )
    parser.add_argument("--lease-seconds", type=float, default=10.0, help="between renewals")
    parser.add_argument(
        "--backoff-seconds", type=float, default=10.0, help="before the second restart; doubles"
    )
    parser.add_argument(
        "--api-url", default="", help="where pods find the API server, if not where the kubelet does"
    )
    parser.add_argument("--api-ca", type=Path, help="CA of --api-url, if not the cluster's own")
    given = parser.parse_args()
    plan = Plan(_pairs(given.labels), _pairs(given.capacity), given.lease_seconds, given.backoff_seconds)
    names = [f"{given.prefix}{number}" for number in range(1, given.nodes + 1)]
    ca = check_ca(given.api_ca.read_text() if given.api_ca else "")
    asyncio.run(_run(given.kubeconfig, given.dir, names, plan, given.api_url, ca))


async def _run(kubeconfig: Path, folder: Path, names: list[str], plan: Plan, api_url: str, ca: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    memory = Path(tempfile.mkdtemp(prefix="kubelet-", dir="/dev/shm"))
    host = Host(Cluster.of(kubeconfig), folder.resolve(), memory, plan, api_url, ca)
    control = ControlPort(host)
    try:
        await host.start(names)
        print(await control.start(), flush=True)
        await stop.wait()
    finally:
        await control.stop()
        await host.stop()
        shutil.rmtree(memory, ignore_errors=True)


main()
