"""Cost of creating process groups for the store: ours against megatron-core's default sequence.

    unshare -n sh -c 'ip link set lo up; python benchmarks/group_init.py --ranks 512 2048 10240'

It runs in a network namespace, because torch looks up the host name of every peer, and with a slow name
server that takes longer than all requests together.

For each number of ranks (tensor 8, pipeline 8, the rest data parallel) and for TCPStore with and without
libuv, one real connection per rank is opened to a real torch TCPStore server and sends the requests of a
rank.

The groups are those that `megascale.engine.groups.build_groups` and megatron-core's
`parallel_state.initialize_model_parallel` ask for, recorded in place of `new_group`. Two kinds of requests:

- NCCL ids: in each group the first rank sets an id and the others get it (a wait and a get). Sent in full,
  for all groups and ranks, by both.
- barriers: torch < 2.1, and torch today under TORCH_DIST_INIT_BARRIER=1, ends every `new_group` by a barrier
  of the whole world (an add, another, a wait). That is 900 million requests at 10,240 ranks: a few barriers
  are sent in full, the rest is extrapolated.

Not in here: NCCL's communicator creation (split, ranks per root), which needs GPUs: untested.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final
from unittest import mock

import psutil
from report import write_result
from torch import distributed
from torch.distributed import TCPStore

THREADS: Final = 64
TENSOR: Final = 8
PIPELINE: Final = 8
BARRIERS_IN_FULL: Final = 3
ID: Final = "i" * 128  # bytes of an ncclUniqueId
TIMEOUT: Final = timedelta(seconds=60)
SERVER: Final = """
import signal, sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=sys.argv[1] == "1")
print(store.port, flush=True)
signal.pause()
"""


Groups = list[tuple[int, ...]]


def default_groups(ranks: int) -> Groups:
    """The groups that every rank asks for by megatron-core's default, in order."""
    from megatron.core import parallel_state

    asked: Groups = []

    def new_group(ranks: list[int], **_: object) -> object:
        asked.append(tuple(ranks))
        return mock.sentinel.group

    with mock.patch.multiple(
        distributed,
        new_group=new_group,
        is_initialized=lambda: True,
        get_rank=lambda *_: 0,
        get_world_size=lambda *_: ranks,
    ):
        parallel_state.initialize_model_parallel(TENSOR, PIPELINE)
    parallel_state.destroy_model_parallel()
    return asked


def our_groups(ranks: int) -> Groups:
    """The groups that any rank asks for, each once, asked for by its members only."""
    from megascale.engine import groups
    from megascale.model.layout import Layout

    layout = Layout(tensor=TENSOR, pipeline=PIPELINE, data=ranks // (TENSOR * PIPELINE))
    found: set[tuple[int, ...]] = set()
    for rank in range(ranks):
        stub = mock.Mock(spec=["get_rank", "new_group", "group"])
        stub.get_rank = lambda rank=rank: rank
        stub.new_group = lambda members, **_: found.add(tuple(members))
        with mock.patch.object(groups, "distributed", stub):
            groups.build_groups(layout)
    return sorted(found)


@dataclass
class Server:
    """A TCPStore in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, *, libuv: bool) -> Server:
        command = [sys.executable, "-c", SERVER, str(int(libuv))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return cls(process, int(process.stdout.readline()))

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def at_once(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], object]]) -> None:
    """Make the calls from all threads, so that many requests are on their way to the server."""
    slices = [calls[first::THREADS] for first in range(THREADS)]
    for done in [pool.submit(lambda part=part: [call() for call in part]) for part in slices]:
        done.result()


def barrier(pool: ThreadPoolExecutor, clients: Sequence[TCPStore], key: str) -> int:
    """torch's store barrier of the world, each rank over its own connection; returns the requests sent."""
    last = f"{key}:last_worker"
    for amount in (1, 0):
        at_once(pool, [partial(client.add, key, amount) for client in clients])
    clients[-1].set(last, "1")
    at_once(pool, [partial(client.wait, [last], TIMEOUT) for client in clients])
    return 3 * len(clients) + 1


def exchange_ids(pool: ThreadPoolExecutor, clients: Sequence[TCPStore], groups: Groups, prefix: str) -> int:
    """An NCCL id from the first member of each group to the others; returns the requests sent."""
    sets = [partial(clients[group[0]].set, f"{prefix}/{i}", ID) for i, group in enumerate(groups)]
    gets = [partial(clients[r].get, f"{prefix}/{i}") for i, group in enumerate(groups) for r in group[1:]]
    at_once(pool, sets)
    at_once(pool, gets)
    return len(sets) + 2 * len(gets)  # the client sends a wait before each get


def measure(ranks: int, ours: Groups, default: Groups, *, libuv: bool) -> dict[str, float]:
    """Requests, and CPU seconds of the server, of each part."""
    server = Server.start(libuv=libuv)
    clients: list[TCPStore] = []

    def connect() -> None:
        clients.append(
            TCPStore("127.0.0.1", server.port, None, is_master=False, timeout=TIMEOUT, wait_for_workers=False)
        )

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            clock = [server.cpu_s()]
            at_once(pool, [connect] * ranks)
            clock.append(server.cpu_s())
            ours_requests = exchange_ids(pool, clients, ours, "ours")
            clock.append(server.cpu_s())
            default_requests = exchange_ids(pool, clients, default, "default")
            clock.append(server.cpu_s())
            barriers = sum(barrier(pool, clients, f"barrier/{i}") for i in range(BARRIERS_IN_FULL))
            clock.append(server.cpu_s())
    finally:
        server.process.kill()
        server.process.wait()
    connect_cpu, ours_cpu, default_cpu, barrier_cpu = (b - a for a, b in itertools.pairwise(clock))
    return {
        "connect_cpu": connect_cpu,
        "ours_requests": ours_requests / ranks,
        "ours_cpu": ours_cpu,
        "default_requests": default_requests / ranks,
        "default_cpu": default_cpu,
        "barrier_requests": 3 * len(default),
        "barrier_cpu": barrier_cpu / barriers * 3 * len(default) * ranks,
    }


def run(ranks: int) -> list[str]:
    """Table rows of one number of ranks."""
    ours, default = our_groups(ranks), default_groups(ranks)
    rows = []
    for libuv in (True, False):
        found = measure(ranks, ours, default, libuv=libuv)
        row = (
            f"| {ranks:,} | {'on' if libuv else 'off'} | {found['connect_cpu']:.2f} "
            f"| {sum(map(len, ours)) / ranks:.1f} | {found['ours_requests']:.1f} | {found['ours_cpu']:.2f} "
            f"| {len(default):,} | {sum(map(len, default)) / ranks:.1f} | {found['default_requests']:.1f} "
            f"| {found['default_cpu']:.2f} | {found['barrier_requests']:,} | {found['barrier_cpu']:,.0f} |"
        )
        print(row, flush=True)
        rows.append(row)
    return rows


BODY: Final = """Layout: tensor 8, pipeline 8, the rest data parallel. One real TCP connection per rank,
all from one process on the machine of the server, so the server's CPU seconds count, not the wall time.

| ranks | libuv | connect CPU s | ours: groups a rank makes | ours: requests per rank | ours: CPU s \
| megatron-core: new_group calls per rank | of them with the rank | ids: requests per rank | ids: CPU s \
| barriers: requests per rank | barriers: CPU s (extrapolated) |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}

- ours and megatron-core's ids: every request of every rank was sent. Ours makes a group on its members only.
- barriers: what torch < 2.1 adds by default, and torch today under TORCH_DIST_INIT_BARRIER=1: three requests
  per rank for each of megatron-core's calls. {full} barriers of the whole world were sent in full; their cost
  per request times the number of requests is extrapolated, not run. Waits are answered at once: lower bound.
- without that variable `new_group` itself sends nothing; its calls cost each rank time all the same.
- gloo, counted with a counting store (not in the table): 2n + 1 requests per rank for a group of n, at once.
- run in a network namespace without a name server: torch looks up the name of every connection's other end.
- NCCL's communicator creation (split, ranks per root) needs GPUs: untested."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--ranks", type=int, nargs="+", default=[512, 2048, 10240])
    options = arguments.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if max(options.ranks) + 200 > hard:
        sys.exit(
            f"--ranks {max(options.ranks)}: at most {hard - 200} connections fit the limit of open files"
        )
    rows = [row for ranks in options.ranks for row in run(ranks)]
    print(write_result("group_init", BODY.format(rows="\n".join(rows), full=BARRIERS_IN_FULL)))


if __name__ == "__main__":
    main()
