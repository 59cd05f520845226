"""`python -m simulated --kubeconfig FILE --dir DIR --nodes 1600`: simulates nodes and agents until SIGTERM.

The nodes have the taint megascale.io/simulated=true:NoSchedule and a label of the same name: give a job's
slots a toleration and a node selector for them. It prints the URL of its control port when every node accepts
pods.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from kubelet.client import Client
from rest import Cluster

from simulated.control import ControlPort
from simulated.nodes import Fleet, Nodes
from simulated.slots import Slots
from simulated.world import Pace


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulated", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1600)
    parser.add_argument("--rack", type=int, default=32, help="nodes that fail together")
    parser.add_argument("--prefix", default="sim-", help="of node names; numbers from 0 follow")
    parser.add_argument("--lease-seconds", type=float, default=20.0)
    parser.add_argument("--step-seconds", type=float, default=1.0, help="a training step takes this long")
    given = parser.parse_args()
    fleet = Fleet(given.nodes, given.rack, given.prefix, given.lease_seconds)
    asyncio.run(_run(given.kubeconfig, given.dir, fleet, Pace(step_s=given.step_seconds)))


async def _run(kubeconfig: Path, folder: Path, fleet: Fleet, pace: Pace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = Client(Cluster.of(kubeconfig), "kubelet/simulated")
    nodes = Nodes(client, fleet)
    slots = Slots(client, folder, nodes, pace)
    control = ControlPort(slots)
    try:
        await nodes.register()
        slots.start()
        await nodes.usable()
        print(await control.start(), flush=True)
        await stop.wait()
    finally:
        await control.stop()
        await slots.stop()


main()
