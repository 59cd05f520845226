"""The installed megatron-core, whichever of the supported versions it is, behind one set of names."""

from __future__ import annotations

import logging
from types import ModuleType, SimpleNamespace

import pytest
import torch
from megatron.core.distributed import distributed_data_parallel
from megatron.core.models.gpt import gpt_model

from megascale.model.gpt import transformer_config
from megascale.model.layout import Layout
from megascale.model.megatron_compat import norm_gradients, silence_warnings
from megascale.model.shape import ModelShape


def test_no_layer_is_captured_in_a_cuda_graph() -> None:
    shape = ModelShape(num_layers=1, hidden_size=8, attention_heads=1, kv_heads=1, ffn_hidden_size=8)
    layout = Layout(tensor=1, pipeline=1, data=1)
    config = transformer_config(shape, layout, dtype=torch.float32, on_cpu=True)
    captured = [getattr(config, name, None) for name in ("cuda_graph_modules", "cuda_graph_scope")]
    assert [] in captured
    assert not any(captured)


@pytest.mark.parametrize("name", ["get_main_grads_for_grad_norm", "get_grads_for_grad_norm"])
def test_gradients_of_the_norm_have_either_name(name: str) -> None:
    gradients: list[torch.Tensor] = [torch.ones(2)]
    assert norm_gradients(SimpleNamespace(**{name: lambda: gradients})) is gradients


@pytest.mark.parametrize(
    ("module", "warning"),
    [
        (gpt_model, "GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes"),
        (distributed_data_parallel, "DistributedDataParallel: full_param_layout not provided with"),
    ],
)
def test_only_known_warnings_are_kept_out_of_the_log(
    module: ModuleType, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    silence_warnings()
    logger = logging.getLogger(module.__name__)
    logger.warning(warning)
    logger.warning("something else about %s", "GPTModel")
    assert [record.getMessage() for record in caplog.records] == ["something else about GPTModel"]
