from __future__ import annotations

import os

import pytest

from megascale.engine.device import CONNECTIONS, order_launches


def test_tensor_parallel_ranks_have_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONNECTIONS, "")
    monkeypatch.delenv(CONNECTIONS)
    assert order_launches(1) is None
    assert CONNECTIONS not in os.environ
    assert order_launches(2) == "CUDA_DEVICE_MAX_CONNECTIONS: 1"
    assert os.environ[CONNECTIONS] == "1"
    monkeypatch.setenv(CONNECTIONS, "8")
    assert (
        order_launches(2)
        == "CUDA_DEVICE_MAX_CONNECTIONS: 8; megatron-core expects 1 with tensor-parallel ranks"
    )
