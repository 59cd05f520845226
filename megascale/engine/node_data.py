"""Where a rank's samples come from: its own mapping of the data, or its node's loader."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from megascale.data.node_loader import NodeBatch, NodeSamples, start_loader
from megascale.data.reading import Samples, open_samples
from megascale.engine.context import RankLaunch
from megascale.engine.plan import Plan
from megascale.model.layout import Place

_TMPFS: Final = Path("/dev/shm")  # noqa: S108 - names are per user, run and node


class NodeData:
    """Opens the data of one rank; make it before the rank has threads, `connect` when its peers are there."""

    def __init__(self, launch: RankLaunch, plan: Plan) -> None:
        """Check the data, and start the node's loader if this is the rank that does.

        Raises:
            DataError: missing, damaged or too small.
        """
        data, ranks = plan.megatron.data, launch.local_world_size
        self.shared = data.loader == "shared" or (data.loader == "auto" and ranks > 1)
        self._batch = _node_batch(launch, plan)
        self._place = _place(launch)
        self._direct: Samples | None = None
        if not self.shared or launch.local_rank == 0:
            self._direct = open_samples(data, plan.megatron.seed)
        if self.shared and self._direct is not None:
            first_step = launch.resume.step + 1 if launch.resume else 1
            start_loader(self._direct, self._batch, self._place, ranks, first_step=first_step)

    def connect(self) -> Samples:
        """Samples of this rank.

        Raises:
            DataError: the node's loader is not there.
        """
        if not self.shared and self._direct is not None:
            return self._direct
        return NodeSamples(self._batch, self._place)


def _node_batch(launch: RankLaunch, plan: Plan) -> NodeBatch:
    first = launch.node_rank * launch.local_world_size
    places = [Place.of(rank, plan.layout) for rank in range(first, first + launch.local_world_size)]
    data = plan.megatron.data
    return NodeBatch(
        sequence_length=data.sequence_length,
        batches=plan.batches,
        micro_batch=data.micro_batch,
        data_ranks=tuple(sorted({place.data for place in places})),
        data_size=plan.layout.data,
        with_documents=plan.megatron.model.within_documents,
    )


def _place(launch: RankLaunch) -> Path:
    """The same for all ranks of a node and attempt, and short: a socket's path has at most 107 bytes."""
    folder = _TMPFS if os.access(_TMPFS, os.W_OK) else Path(tempfile.gettempdir())
    name = f"{launch.run_dir.absolute()}/{launch.node}/{launch.attempt}"
    return folder / f"megascale-loader-{os.getuid()}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
