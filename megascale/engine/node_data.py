"""Opens the samples of a rank: mapped by itself, or from the loader process of its node."""

from __future__ import annotations

from megascale.data.loader_files import loader_prefix, remove_ownerless
from megascale.data.node_loader import NodeBatch, NodeSamples, start_loader
from megascale.data.reading import Samples, open_samples
from megascale.engine.context import RankLaunch
from megascale.engine.plan import Plan
from megascale.model.layout import RankCoordinates


class NodeData:
    """The data of one rank. Construct it before the process starts threads; `connect` once all ranks run."""

    def __init__(self, launch: RankLaunch, plan: Plan) -> None:
        """Check the data; local rank 0 starts the node's loader if there is one.

        Raises:
            DataError: missing, damaged or too small.
        """
        data, ranks = plan.megatron.data, launch.local_world_size
        self._data, self._position = data, plan.position
        self.shared = data.loader == "shared" or (data.loader == "auto" and ranks > 1)
        self._batch = _node_batch(launch, plan)
        self._prefix = loader_prefix(launch.run_dir, launch.node, launch.attempt)
        self._direct: Samples | None = None
        if not self.shared or launch.local_rank == 0:
            self._direct = open_samples(data, plan.position)
        if self.shared and self._direct is not None:
            first_step = launch.resume.step + 1 if launch.resume else 1
            remove_ownerless(self._prefix.parent)
            start_loader(self._direct, self._batch, self._prefix, ranks, first_step=first_step)

    def connect(self) -> Samples:
        """Samples of this rank.

        Raises:
            LoaderError: the node's loader is not there.
        """
        if not self.shared and self._direct is not None:
            return self._direct
        return NodeSamples(self._batch, self._prefix)

    def place(self, sample: int, column: int) -> str:
        """The file of token `column` of a sample of the job, and its position there."""
        return open_samples(self._data, self._position).place(sample, column)


def _node_batch(launch: RankLaunch, plan: Plan) -> NodeBatch:
    first = launch.node_rank * launch.local_world_size
    coordinates = [
        RankCoordinates.of(rank, plan.layout) for rank in range(first, first + launch.local_world_size)
    ]
    data = plan.megatron.data
    return NodeBatch(
        sequence_length=data.sequence_length,
        batches=plan.batches,
        micro_batch=data.micro_batch,
        data_ranks=tuple(sorted({own.data for own in coordinates})),
        data_size=plan.layout.data,
        with_documents=plan.megatron.model.within_documents or not data.loss_across_documents,
    )
