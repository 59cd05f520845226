"""Process groups: each rank creates only the groups that the layout needs and that it is a member of.

Groups of the same ranks share one object, among them all groups of one rank, and no call is a barrier over
all ranks. `megatron.core.parallel_state` stays uninitialised, except for its scratch buffer, which linear
layers use under sequence parallelism. The order of ranks is that of `Layout`.
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

from megascale.model.layout import Layout, RankCoordinates

COLLECTIVE_TIMEOUT: Final = timedelta(minutes=10)
"""Longer than any link flap. The driver finds and stops ranks that hang before it."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one rank.

    Attributes:
        collection: the groups in the form that megatron-core takes.
        world: all ranks.
        stage: the tensor x data ranks of this pipeline stage, which together hold its parameters.
    """

    layout: Layout
    coordinates: RankCoordinates
    collection: ProcessGroupCollection
    world: distributed.ProcessGroup
    stage: distributed.ProcessGroup


class _Builder:
    """Creates groups on demand, one object per set of ranks."""

    def __init__(self, layout: Layout, coordinates: RankCoordinates) -> None:
        self.layout = layout
        self.coordinates = coordinates
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
        own, sizes = self.coordinates, self.layout
        tensors = range(sizes.tensor) if "tensor" in dimensions else [own.tensor]
        datas = range(sizes.data) if "data" in dimensions else [own.data]
        stages = range(sizes.pipeline) if "pipeline" in dimensions else [own.pipeline]
        return self.group([sizes.rank_of(t, d, p) for p in stages for d in datas for t in tensors])

    def ends(self) -> distributed.ProcessGroup | None:
        """The group of the first and last stage, which share tied embeddings; None on other stages."""
        last = self.layout.pipeline - 1
        if last == 0 or self.coordinates.pipeline not in (0, last):
            return None
        own = self.coordinates
        return self.group([self.layout.rank_of(own.tensor, own.data, p) for p in (0, last)])


def _bind_gloo(store_host: str) -> None:
    """Have gloo use the loopback interface if the store does, instead of the hostname's address.

    gloo reads the interface only from the environment.
    """
    if store_host in ("127.0.0.1", "::1", "localhost"):
        loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])


def connect(host: str, port: int, prefix: str, *, rank: int, world_size: int, backend: str) -> None:
    """Join the world group of one attempt through its store.

    The store runs in a process of its own and survives the death of any rank; `prefix` separates attempts. No
    device is bound to the world group: torch would then create every other group by a split of its
    communicator, in which all ranks take part, while here only the members of a group create it.
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
    """Create this rank's groups; every rank calls it after `connect`."""
    coordinates = RankCoordinates.of(distributed.get_rank(), layout)
    build = _Builder(layout, coordinates)
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
    return Groups(layout, coordinates, collection, build.world, stage)
