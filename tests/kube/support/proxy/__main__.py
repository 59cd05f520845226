"""`python -m proxy --kubeconfig FILE --dir DIR --clients a b`: runs until SIGTERM.

It prints its control URL. DIR/ca.crt is the CA of its listeners, DIR/trail.jsonl has one line per request.
Clients send their own bearer tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from apiserver.certs import Authority
from rest import Cluster

from proxy.control import ControlPort
from proxy.forward import Listener
from proxy.rules import Rules
from proxy.trail import Trail


def main() -> None:
    parser = argparse.ArgumentParser(prog="proxy", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="names the API server and its CA")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--clients", nargs="+", required=True, help="each gets a listener")
    given = parser.parse_args()
    asyncio.run(_run(given.kubeconfig, given.dir, given.clients))


async def _run(kubeconfig: Path, folder: Path, clients: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster, authority = Cluster.of(kubeconfig), Authority("proxy-ca")
    (folder / "ca.crt").write_bytes(authority.pem)
    rules, trail = Rules(), Trail(folder / "trail.jsonl")
    upstream = ssl.create_default_context(cadata=cluster.ca_pem)
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(ssl=upstream, limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector, auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
            )
        )
        listeners = {name: Listener(name, cluster, session, rules, trail) for name in clients}
        for listener in listeners.values():
            await listener.start(authority.server_context(folder))
            stack.push_async_callback(listener.stop)
        control = ControlPort(rules, listeners)
        print(await control.start(), flush=True)
        await stop.wait()
        rules.clear()
        await control.stop()
    trail.close()


main()
