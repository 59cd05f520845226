"""GPT on megatron-core's `GPTModel`, with the blocks, attention and loss of this package."""

from __future__ import annotations

import copy
from typing import Any, Final, Literal

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from megascale.model.attention import Backend, Reference
from megascale.model.blocks import BLOCKS, OverlappedBlock
from megascale.model.layout import Layout
from megascale.model.loss import token_losses
from megascale.model.megatron_compat import no_cuda_graphs
from megascale.model.norms import NORMS
from megascale.model.shape import ModelShape

AUXILIARY_LOSS: Final = 0.01
"""Weight of the router's load-balancing loss (Switch Transformer, Fedus et al. 2022, section 2.2)."""
Recompute = Literal["none", "selective", "full"]


def _recompute_options(recompute: Recompute) -> dict[str, Any]:
    """megatron-core's options for activation recomputation (Korthikanti et al. 2023)."""
    if recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "selective" if recompute == "selective" else None}


def _expert_options(shape: ModelShape) -> dict[str, Any]:
    if shape.experts is None:
        return {}
    return {
        "num_moe_experts": shape.experts,
        "moe_router_topk": shape.experts_per_token,
        # With one expert per token a softmax over the chosen is always 1, and the router gets no gradient.
        "moe_router_pre_softmax": shape.experts_per_token == 1,
        "moe_ffn_hidden_size": shape.ffn_hidden_size,
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "moe_aux_loss_coeff": AUXILIARY_LOSS,
    }


def transformer_config(
    shape: ModelShape,
    layout: Layout,
    *,
    dtype: torch.dtype,
    on_cpu: bool,
    recompute: Recompute = "none",
    overlap_pipeline: bool = True,
) -> TransformerConfig:
    """megatron-core's configuration of `shape`; `parameters.initialise` sets the initial values."""
    return TransformerConfig(
        **_recompute_options(recompute),
        **_expert_options(shape),
        **no_cuda_graphs(),
        qk_layernorm=shape.qk_norm,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.attention_heads,
        num_query_groups=shape.kv_heads,
        ffn_hidden_size=shape.ffn_hidden_size,
        gated_linear_unit=shape.activation == "swiglu",
        activation_func=functional.silu if shape.activation == "swiglu" else functional.gelu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
        sequence_parallel=layout.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        # The interleaved schedule sends and receives while it computes; 1F1B batches a send with a receive.
        # In a batch, gloo would confuse the messages of two chunks between the same two ranks.
        overlap_p2p_comm=layout.interleave > 1 and overlap_pipeline,
        batch_p2p_comm=layout.interleave == 1,
        batch_p2p_sync=False,
        # gloo may still read a sent tensor when the schedule would free it.
        deallocate_pipeline_outputs=not on_cpu,
        perform_initialization=False,
        use_cpu_initialization=on_cpu,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        # Keeps only the two halves for the backward pass. Its kernel is compiled, so not on a CPU.
        bias_activation_fusion=shape.activation == "swiglu" and shape.experts is None and not on_cpu,
        bias_dropout_fusion=False,
    )


class Gpt(GPTModel):  # type: ignore[misc] # megatron-core is untyped
    """One model chunk of a GPT: maps tokens (b, s) to token losses (b, s) or hidden states (s, b, h)."""

    def __init__(
        self,
        config: TransformerConfig,
        shape: ModelShape,
        sequence_length: int,
        groups: ProcessGroupCollection,
        *,
        first: bool,
        last: bool,
        chunk: int | None,
        backend: Backend | None = None,
        overlap_tensor: bool = False,
    ) -> None:
        """Build the layers of this rank's model chunk `chunk` (None without interleaving).

        The `first` chunk holds the embedding, the `last` one the final norm and the output layer. `backend`
        computes attention, None = the reference. With `overlap_tensor` the parallel block's collectives run
        within its matrix products.
        """
        layers = config.num_layers // config.pipeline_model_parallel_size
        layers //= config.virtual_pipeline_model_parallel_size or 1
        layer = ModuleSpec(
            module=OverlappedBlock if overlap_tensor else BLOCKS[shape.block],
            params={"shape": shape, "backend": backend or Reference()},
        )
        # Tied embeddings of the first and last stage start equal, because `initialise` works by name. Without
        # an embedding group megatron-core skips its all-reduce for that.
        own = copy.copy(groups)
        own.embd = None
        super().__init__(
            config,
            TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=NORMS[shape.norm]),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=sequence_length,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=shape.rotary_base,
            pg_collection=own,
            vp_stage=chunk,
        )

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Token losses (b, s) from labels (b, s) and this rank's logits (s, b, vocab / tp)."""
        return token_losses(logits, labels, self.tp_group)
