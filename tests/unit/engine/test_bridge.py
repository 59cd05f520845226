from __future__ import annotations

import threading

import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

from megascale.engine.bridge import cpu_bridge


def test_cuda_means_cpu_inside_and_only_inside() -> None:
    before = torch.cuda.current_device
    with cpu_bridge():
        made = [
            torch.zeros(2, device="cuda"),
            torch.empty(2, device=torch.device("cuda", 0)),
            torch.zeros(2, device=torch.cuda.current_device()),
            torch.zeros(2).cuda(),
            torch.zeros(2).to("cuda"),
            torch.zeros(2).to(device="cuda", dtype=torch.bfloat16),
        ]
        assert {tensor.device.type for tensor in made} == {"cpu"}
        assert made[0].type() == "torch.cuda.FloatTensor"
        assert made[-1].type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(2).type(torch.int64).dtype == torch.int64
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.Event().record()
    assert torch.zeros(2).type() == "torch.FloatTensor"
    assert torch.cuda.current_device is before


def test_other_threads_enter_the_bridge_themselves() -> None:
    seen = []

    def look() -> None:
        seen.append(torch.zeros(2).type())
        with cpu_bridge():
            seen.append(torch.zeros(2).type())

    with cpu_bridge():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == ["torch.FloatTensor", "torch.cuda.FloatTensor"]


def test_forking_the_tracker_leaves_the_cpu_generator_alone() -> None:
    with cpu_bridge():
        model_parallel_cuda_manual_seed(1, tp_rank=0, ep_rank=0, etp_rank=0, force_reset_rng=True)
        state = torch.get_rng_state()
        with get_cuda_rng_tracker().fork():
            pass
        assert torch.equal(torch.get_rng_state(), state)
