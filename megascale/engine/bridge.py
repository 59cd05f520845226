"""The CPU bridge: lets megatron-core run on a machine without an accelerator.

megatron-core allocates on "cuda", uses CUDA streams and generators, and its distributed optimizer
recognises parameters by the string "torch.cuda.FloatTensor". Within `cpu_bridge()` those calls work on the
CPU; outside of it nothing changes. Torch function modes are per thread, so every thread that runs
megatron-core code enters the bridge itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final
from unittest import mock

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

_CPU: Final = torch.device("cpu")
_TYPE_NAMES: Final = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


class _CudaNamesMeanCpu(TorchFunctionMode):
    """Maps the device "cuda" to the CPU in every torch call of this thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _TYPE_NAMES.get(args[0].dtype) or func(*args)
        if func is torch.Tensor.to:
            args = tuple(_CPU if _is_cuda(value) else value for value in args)
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            return func(*args, **kwargs)
        return func(*args)


class _Event:
    """A CUDA event that is always complete."""

    def record(self, _stream: object = None) -> None: ...

    def wait(self, _stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class _Stream:
    """A CUDA stream without pending work: the CPU works synchronously."""

    def wait_stream(self, _other: object) -> None: ...

    def wait_event(self, _event: object) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def synchronize(self) -> None: ...


def _stand_ins() -> list[tuple[ModuleType, str, Any]]:
    """(module, attribute, replacement) for every CUDA call on megatron-core's training path."""
    stream = _Stream()
    # The CUDA generator's part: forking megatron-core's tracker must not change the CPU generator.
    generator = torch.Generator()

    def get_state(*_args: object, **_kwargs: object) -> torch.Tensor:
        return generator.get_state()

    def set_state(state: torch.Tensor, *_args: object, **_kwargs: object) -> None:
        generator.set_state(state)

    def nothing(*_args: object, **_kwargs: object) -> None: ...

    return [
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "current_stream", lambda *_: stream),
        (torch.cuda, "default_stream", lambda *_: stream),
        (torch.cuda, "stream", lambda *_: contextlib.nullcontext()),
        (torch.cuda, "Stream", lambda *_args, **_kwargs: stream),
        (torch.cuda, "Event", lambda *_args, **_kwargs: _Event()),
        (torch.cuda, "synchronize", nothing),
        (torch.cuda, "manual_seed", generator.manual_seed),
        (torch.cuda, "get_rng_state", get_state),
        (torch.cuda, "set_rng_state", set_state),
        (megatron_random, "_get_cuda_rng_state", get_state),
        (megatron_random, "_set_cuda_rng_state", set_state),
    ]


@contextlib.contextmanager
def cpu_bridge() -> Iterator[None]:
    """Redirect CUDA calls to the CPU within the block. Not for processes that have an accelerator."""
    with contextlib.ExitStack() as stack:
        for module, name, replacement in _stand_ins():
            stack.enter_context(mock.patch.object(module, name, replacement))
        stack.enter_context(_CudaNamesMeanCpu())
        yield
