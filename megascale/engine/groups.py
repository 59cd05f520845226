"""Process groups: only those a layout needs, each rank creating only its own.

Ranks are ordered tensor, data, pipeline from the inside out, so tensor-parallel ranks are neighbours and
a data-parallel group stays within one pipeline stage. Groups of the same ranks are one object; all groups
of one share a single group; nothing is a global barrier. `megatron.core.parallel_state` stays
uninitialised, except for its scratch buffer, which linear layers use under sequence parallelism.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, TCPStore

from megascale.model.layout import Layout, Place

COLLECTIVE_TIMEOUT: Final = timedelta(minutes=10)
"""Longer than any flap of a link; ranks that hang earlier are found and stopped from outside."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one rank.

    Attributes:
        collection: what megatron-core is given.
        world: all ranks.
        stage: the ranks of this pipeline stage, tensor x data, which together hold its parameters.
    """

    layout: Layout
    place: Place
    collection: ProcessGroupCollection
    world: distributed.ProcessGroup
    stage: distributed.ProcessGroup


class _Builder:
    """Makes groups on demand, one object per set of ranks."""

    def __init__(self, layout: Layout, place: Place) -> None:
        self.layout = layout
        self.place = place
        world = distributed.group.WORLD
        assert world is not None, "connect comes first"
        self.world = world
        self._made = {tuple(range(layout.world_size)): self.world}

    def group(self, ranks: list[int]) -> distributed.ProcessGroup:
        key = tuple(sorted(ranks))
        if key not in self._made:
            self._made[key] = distributed.new_group(
                list(key), timeout=COLLECTIVE_TIMEOUT, use_local_synchronization=True
            )
        return self._made[key]

    def along(self, *dimensions: str) -> distributed.ProcessGroup:
        """The group of this rank along the named dimensions."""
        at, sizes = self.place, self.layout
        tensors = range(sizes.tensor) if "tensor" in dimensions else [at.tensor]
        datas = range(sizes.data) if "data" in dimensions else [at.data]
        stages = range(sizes.pipeline) if "pipeline" in dimensions else [at.pipeline]
        return self.group([sizes.rank_of(t, d, p) for p in stages for d in datas for t in tensors])

    def ends(self) -> distributed.ProcessGroup | None:
        """First and last pipeline stage, which both hold tied embeddings; None for the others."""
        last = self.layout.pipeline - 1
        if last == 0 or self.place.pipeline not in (0, last):
            return None
        return self.group([self.layout.rank_of(self.place.tensor, self.place.data, p) for p in (0, last)])


def _bind_gloo(store_host: str) -> None:
    """Keep gloo on the loopback interface when the store is there, not where the hostname points.

    The environment is the only way to tell it.
    """
    if store_host in ("127.0.0.1", "::1", "localhost"):
        loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])


def connect(host: str, port: int, prefix: str, *, rank: int, world_size: int, backend: str) -> None:
    """Join the world of one attempt through its store.

    The store is a server of its own, so that no rank's death takes it along; `prefix` keeps attempts apart.
    No device is bound to the world: torch would then split every group off its communicator, which needs
    all ranks, while here only the members of a group make it.
    """
    if backend == "gloo":
        _bind_gloo(host)
    store = TCPStore(host, port, None, is_master=False, timeout=COLLECTIVE_TIMEOUT, wait_for_workers=False)
    distributed.init_process_group(
        backend,
        store=PrefixStore(prefix, store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def build_groups(layout: Layout) -> Groups:
    """Make this rank's groups; every rank of the world calls it after `connect`."""
    place = Place.of(distributed.get_rank(), layout)
    build = _Builder(layout, place)
    tensor = build.along("tensor")
    data = build.along("data")
    pipeline = build.along("pipeline")
    stage = build.along("tensor", "data")
    single = build.along()
    collection = ProcessGroupCollection(
        tp=tensor,
        pp=pipeline,
        cp=single,
        ep=single,
        dp=data,
        dp_cp=data,
        tp_cp=tensor,
        tp_dp_cp=stage,
        # Experts are not spread over ranks: their weights are cut like those of any other layer.
        expt_tp=tensor,
        tp_ep=tensor,
        expt_dp=data,
        embd=build.ends(),
        pos_embd=None,
    )
    if layout.sequence and parallel_state._GLOBAL_MEMORY_BUFFER is None:  # noqa: SLF001
        parallel_state._set_global_memory_buffer()  # noqa: SLF001 - its only setter
    return Groups(layout, place, collection, build.world, stage)
