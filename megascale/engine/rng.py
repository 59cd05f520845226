"""Seeds a rank's random number generators and converts their state to JSON for checkpoints."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

from megascale.model.layout import RankCoordinates


def seed_all(seed: int, coordinates: RankCoordinates) -> None:
    """Seed every generator. Tensor-parallel peers get equal seeds, except in megatron-core's tracker."""
    own = seed + 1000 * coordinates.pipeline + 100_000 * coordinates.data
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(
        own, tp_rank=coordinates.tensor, ep_rank=0, etp_rank=coordinates.tensor, force_reset_rng=True
    )


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def rng_state() -> dict[str, Any]:
    """The state of every generator, as JSON values (about 12 KB)."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {
            "key": numpy_state["state"]["key"].tolist(),
            "pos": int(numpy_state["state"]["pos"]),
            "hasGauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": _encode(torch.get_rng_state()),
        "cuda": _encode(torch.cuda.get_rng_state()),
        "tracker": {name: _encode(state) for name, state in get_cuda_rng_tracker().get_states().items()},
    }


class RngText:
    """Caches `rng_state()` as JSON text for as long as no generator is used."""

    def __init__(self) -> None:
        self._seen: list[object] = []
        self._text = b""

    def text(self) -> bytes:
        """The current text; about 20 us if nothing changed."""
        now = _raw_states()
        if now != self._seen:
            self._seen, self._text = now, json.dumps(rng_state()).encode()
        return self._text


def _raw_states() -> list[object]:
    """The state of every generator in a form that is cheap to compare."""
    numpy_state: Any = np.random.get_state(legacy=False)
    tracked = get_cuda_rng_tracker().get_states()
    tensors = (torch.get_rng_state(), torch.cuda.get_rng_state(), *tracked.values())
    return [
        random.getstate(),
        (numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"], numpy_state["gauss"]),
        *(tensor.cpu().numpy().tobytes() for tensor in tensors),
    ]


def restore_rng(state: dict[str, Any]) -> None:
    """Put every generator back to what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(saved["key"], dtype=np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["hasGauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(_decode(state["torch"]))
    torch.cuda.set_rng_state(_decode(state["cuda"]))
    get_cuda_rng_tracker().set_states({name: _decode(text) for name, text in state["tracker"].items()})
