"""What this machine says to a job's settings, before the job is launched: devices, kernels, memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import psutil
import torch

from megascale.engine.device import dtype_of
from megascale.errors import InputError
from megascale.job.schema import JobSpec
from megascale.model.kernels import choose_backend
from megascale.model.layout import Layout
from megascale.model.memory import stage_memory
from megascale.model.shape import ModelShape

_COMPILERS = ("c++", "g++", "clang++")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found about a job of the engine.

    Attributes:
        problems: (field of the manifest, what is wrong) of what would end every launch here.
        checked, not_checked: what was compared, and what could not be, in words.
    """

    problems: list[tuple[str, str]]
    checked: list[str]
    not_checked: list[str]


def inspect_engine(spec: JobSpec) -> Findings:
    """Compare a job of the engine with the devices and the memory of this machine."""
    found = Findings([], [], [])
    _inspect_kernels(spec, found)
    _inspect_devices(spec, found)
    _inspect_memory(spec, found)
    return found


def _inspect_kernels(spec: JobSpec, found: Findings) -> None:
    megatron = spec.runtime.megatron
    assert megatron is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = choose_backend(megatron.model.attention, device, dtype_of(megatron.precision, device))
    except InputError as error:
        field, _, reason = str(error).partition(" ")
        found.problems.append((field, reason))
    else:
        found.checked.append(f"attention: {chosen.backend.name} on {device.type} ({chosen.reason})")
    if megatron.compile and not any(map(shutil.which, _COMPILERS)):
        text = (
            f"is true, but torch.compile needs a C++ compiler and none of {', '.join(_COMPILERS)} is on PATH"
        )
        found.problems.append(("spec.runtime.megatron.compile", text))


def _inspect_devices(spec: JobSpec, found: Findings) -> None:
    if not torch.cuda.is_available():
        found.not_checked.append("GPUs: this machine has none, ranks run on its CPU")
        return
    count = torch.cuda.device_count()
    if spec.ranks_per_node > count:
        text = f"is {spec.ranks_per_node}, but this machine has {count} GPUs and a rank takes one"
        found.problems.append(("spec.ranksPerNode", text))
    found.checked.append(f"GPUs: {count} x {torch.cuda.get_device_name(0)}")


def _inspect_memory(spec: JobSpec, found: Findings) -> None:
    """The estimate for the fullest rank against a GPU, or for all ranks against the memory of the machine."""
    needed = rank_bytes(spec)
    if torch.cuda.is_available():
        room = int(torch.cuda.get_device_properties(0).total_memory)
        what = "a rank", "a GPU has"
    else:
        # All nodes of a local run are processes of this machine.
        needed, room = needed * spec.world_size, int(psutil.virtual_memory().total)
        what = f"{spec.world_size} ranks", "this machine has"
    text = f"{what[0]} would take some {needed / _GIB:.2f} GiB, {what[1]} {room / _GIB:.2f} GiB"
    if needed > room:
        cure = "use a smaller microBatch, recompute: full, or more tensor or pipeline ranks"
        found.problems.append(("spec.runtime.megatron", f"{text}: {cure}"))
    else:
        found.checked.append(f"memory: {text}")


def rank_bytes(spec: JobSpec) -> int:
    """Estimated memory of a rank of the fullest pipeline stage; docs/model.md has the formulas."""
    megatron = spec.runtime.megatron
    assert megatron is not None
    parallel, data = megatron.parallelism, megatron.data
    layout = Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=parallel.data,
        interleave=parallel.interleave,
        sequence=parallel.sequence,
    )
    stages = [
        stage_memory(
            ModelShape.of(megatron.model),
            layout,
            stage,
            sequence_length=data.sequence_length,
            micro_batch=data.micro_batch,
            micro_batches=data.global_batch // (data.micro_batch * layout.data),
            optimizer=megatron.optimizer.name,
        )
        for stage in range(layout.pipeline)
    ]
    return max(stage.total(recompute=megatron.recompute == "full") for stage in stages)
