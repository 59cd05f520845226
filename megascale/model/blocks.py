"""Transformer blocks, parallel (MegaScale 3.1) and serial, built of megatron-core's attention and MLP."""

from __future__ import annotations

import functools
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import BaseTransformerLayer, get_transformer_layer_offset
from torch import Tensor

from megascale.model.attention import Backend, WindowedAttention
from megascale.model.experts import mixture
from megascale.model.norms import NORMS
from megascale.model.shape import ModelShape
from megascale.model.symmetric import gather_products, scatter_products


class _Attention(SelfAttention):  # type: ignore[misc] # megatron-core is untyped
    """megatron-core's self attention, with the values copied out of the fused projection.

    As a view of it they would keep all of the projection in memory until the backward pass.
    """

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        **options: Any,  # noqa: ANN401 - gated attention and unsplit projections
    ) -> tuple[Tensor, ...]:
        """(s, b, heads, d) and twice (s, b, kv_heads, d) from hidden states (s, b, h)."""
        query, key, value, *gate = super().get_query_key_value_tensors(
            hidden_states, key_value_states, **options
        )
        return (query, key, value.contiguous(), *gate)


class _Block(MegatronModule, BaseTransformerLayer):  # type: ignore[misc] # megatron-core is untyped
    """Base of both blocks: one norm, attention and an MLP. Maps (s, b, h) to (s, b, h).

    Attributes:
        layer_number: 1-based index in the whole model, over all pipeline stages.
        column, row: classes of the linear layers that are split over outputs and over inputs.
    """

    column: type[ColumnParallelLinear] = ColumnParallelLinear
    row: type[RowParallelLinear] = RowParallelLinear

    def __init__(
        self,
        config: TransformerConfig,
        shape: ModelShape,
        layer_number: int,
        *,
        pg_collection: ProcessGroupCollection,
        backend: Backend,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number + get_transformer_layer_offset(
            config, vp_stage, pg_collection.pp.rank()
        )
        self.tp_group = pg_collection.tp
        self.norm = NORMS[shape.norm](config, config.hidden_size)
        head_norm = NORMS[shape.norm] if shape.qk_norm else None
        self.attention = _Attention(
            config,
            SelfAttentionSubmodules(
                linear_qkv=self.column,
                core_attention=functools.partial(
                    WindowedAttention, window=shape.window_of(self.layer_number - 1), backend=backend
                ),
                linear_proj=self.row,
                q_layernorm=head_norm,
                k_layernorm=head_norm,
            ),
            self.layer_number,
            AttnMaskType.causal,
            pg_collection=pg_collection,
        )
        if shape.experts is not None:
            self.mlp = mixture(config, self.layer_number, pg_collection)
        else:
            self.mlp = MLP(
                config,
                MLPSubmodules(linear_fc1=self.column, linear_fc2=self.row),
                ffn_hidden_size=config.ffn_hidden_size,
                tp_group=self.tp_group,
            )


class SerialBlock(_Block):
    """x' = x + Attn(LN(x)); y = x' + MLP(LN(x')), each arm with tensor-parallel communication of its own."""

    def __init__(self, config: TransformerConfig, shape: ModelShape, **placement: Any) -> None:  # noqa: ANN401
        super().__init__(config, shape, **placement)
        self.mlp_norm = NORMS[shape.norm](config, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **_unused: Any,  # noqa: ANN401 - cross attention, inference and packing
    ) -> tuple[Tensor, None]:
        attended, _ = self.attention(self.norm(hidden_states), attention_mask, rotary_pos_emb=rotary_pos_emb)
        hidden_states = hidden_states + attended
        widened, _ = self.mlp(self.mlp_norm(hidden_states))
        return hidden_states + widened, None


class ParallelBlock(_Block):
    """y = x + Attn(LN(x)) + MLP(LN(x)) with one shared norm (MegaScale 3.1).

    Attention and MLP read the same tensor and their outputs are added, so under tensor parallelism they share
    one collective before and one after, half of what the serial block needs. A mixture of experts exchanges
    its tokens itself: then only attention uses these two collectives.
    """

    def __init__(self, config: TransformerConfig, shape: ModelShape, **placement: Any) -> None:  # noqa: ANN401
        super().__init__(config, shape, **placement)
        self._routed = shape.experts is not None
        for column in self._columns():
            column.sequence_parallel = False
            column.allreduce_dgrad = False
            column.disable_grad_reduce = True
        for row in self._rows():
            # megatron-core's name for "the caller reduces the output".
            row.explicit_expert_comm = True

    def _columns(self) -> list[ColumnParallelLinear]:
        """The linear layers whose input the block gathers."""
        return [self.attention.linear_qkv, *([] if self._routed else [self.mlp.linear_fc1])]

    def _rows(self) -> list[RowParallelLinear]:
        """The linear layers whose summed output the block reduces."""
        return [self.attention.linear_proj, *([] if self._routed else [self.mlp.linear_fc2])]

    def _share_in(self, x: Tensor) -> Tensor:
        """Gather (s / tp, b, h) under sequence parallelism, or take (s, b, h), to (s, b, h) on every rank."""
        share = (
            gather_from_sequence_parallel_region
            if self.config.sequence_parallel
            else copy_to_tensor_model_parallel_region
        )
        shared: Tensor = share(x, group=self.tp_group)
        return shared

    def _share_out(self, partial: Tensor) -> Tensor:
        """The sum over ranks, (s, b, h), or this rank's slice of it under sequence parallelism."""
        reduce = (
            reduce_scatter_to_sequence_parallel_region
            if self.config.sequence_parallel
            else reduce_from_tensor_model_parallel_region
        )
        total: Tensor = reduce(partial, group=self.tp_group)
        return total

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **_unused: Any,  # noqa: ANN401 - cross attention, inference and packing
    ) -> tuple[Tensor, None]:
        normed = self.norm(hidden_states)
        shared = self._share_in(normed)
        attended, _ = self.attention(shared, attention_mask, rotary_pos_emb=rotary_pos_emb)
        if self._routed:
            widened, _ = self.mlp(normed)
            return hidden_states + self._share_out(attended) + widened, None
        widened, _ = self.mlp(shared)
        return hidden_states + self._share_out(attended + widened), None


class _PrecomputedColumn(ColumnParallelLinear):  # type: ignore[misc] # megatron-core is untyped
    """Returns its input, which is the product that the block has computed."""

    def forward(self, input_: Tensor, *_unused: Any, **_also: Any) -> tuple[Tensor, None]:  # noqa: ANN401
        return input_, None


class _DeferredRow(RowParallelLinear):  # type: ignore[misc] # megatron-core is untyped
    """Returns its input; the block computes the product."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        return input_, None


class OverlappedBlock(ParallelBlock):
    """The parallel block under sequence parallelism, whose matrix products contain the collectives."""

    column, row = _PrecomputedColumn, _DeferredRow

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **_unused: Any,  # noqa: ANN401 - cross attention, inference and packing
    ) -> tuple[Tensor, None]:
        normed = self.norm(hidden_states)
        heads, *wide = gather_products(normed, [column.weight for column in self._columns()], self.tp_group)
        arms = [self.attention(heads, attention_mask, rotary_pos_emb=rotary_pos_emb)[0]]
        arms += [self.mlp(values)[0] for values in wide]
        hidden_states = hidden_states + scatter_products(
            arms, [row.weight for row in self._rows()], self.tp_group
        )
        return hidden_states + self.mlp(normed)[0] if self._routed else hidden_states, None


BLOCKS = {"parallel": ParallelBlock, "serial": SerialBlock}
