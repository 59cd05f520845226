"""Runs one rank of one attempt, from its launch to its exit code."""

from __future__ import annotations

import os
import time

from torch import distributed

from megascale.engine.affinity import bus_address, cores_beside, stay_on
from megascale.engine.compiling import compile_chunks
from megascale.engine.context import RankLaunch
from megascale.engine.device import Device, open_device, order_launches
from megascale.engine.feed import Feed
from megascale.engine.groups import Groups, build_groups, connect
from megascale.engine.loop import Loop
from megascale.engine.metrics import MetricsLog
from megascale.engine.node_data import NodeData
from megascale.engine.overlap import decide, tensor_obstacle
from megascale.engine.peak import PeakFile, measure_flops, rated_flops
from megascale.engine.plan import Plan, make_plan
from megascale.engine.points import points_of
from megascale.engine.rng import seed_all
from megascale.engine.saving import Checkpointer
from megascale.engine.segments import segment_clock
from megascale.engine.snapshots import Snapshots
from megascale.engine.start import Start, find_start
from megascale.engine.state import EngineState, build_engine
from megascale.errors import CheckpointCorruptError
from megascale.model.kernels import choose_backend
from megascale.observe.alerts import alert
from megascale.observe.rankfile import Phase, RankFile
from megascale.observe.segments import SegmentRing, segments_path


def run_rank(launch: RankLaunch, rank_file: RankFile) -> int:
    """Train as `launch` orders until the job is complete or a stop is requested.

    The process is forked from one that called `megascale.engine.preload`.

    Returns:
        0 when all steps are done, 76 when it saved and stopped on request.

    Raises:
        InputError: the manifest, the data or the layout does not fit.
        CheckpointCorruptError: the checkpoint or snapshot to resume from is damaged.
    """
    rank_file.update(phase=Phase.STARTUP, pid=os.getpid())
    # Before ranks wait for each other, so that bad data fails every rank at once with a message of its own.
    start = find_start(launch, make_plan(launch))
    plan, data = start.plan, start.plan.megatron.data
    if launch.rank == 0:
        for note in start.notes:
            alert("resumeChanged", note)
    node_data = NodeData(launch, plan)
    ordered = order_launches(plan.layout.tensor)
    if ordered and launch.rank == 0:
        print(ordered, flush=True)
    with open_device(launch.local_rank) as device:
        if device.torch_device.type == "cuda":
            print(stay_on(cores_beside(bus_address(device.torch_device))), flush=True)
        groups = _join(launch, plan, device)
        rank_file.update(groups_at=time.monotonic())
        seed_all(plan.megatron.seed, groups.coordinates)
        state = _build(launch, plan, groups, device)
        at_point = points_of(plan.spec.faults, launch)
        checkpointer = Checkpointer(launch, plan, state, rank_file, at_point)
        snapshots = Snapshots.open(launch, state, plan) if launch.snapshot_folders else None
        _resume(launch, start, checkpointer, snapshots)
        rank_file.update(loaded_at=time.monotonic(), step=state.step, tokens=plan.tokens_until(state.step))
        peak_flops = _peak_flops(launch, device)
        rank_file.update(peak_flops=peak_flops)
        feed = Feed(
            node_data.connect(),
            batches=plan.batches,
            micro_batch=data.micro_batch,
            data_rank=groups.coordinates.data,
            data_size=groups.layout.data,
            device=device.torch_device,
            vocab_size=plan.shape.vocab_size,
            within_documents=plan.megatron.model.within_documents,
            loss_across_documents=data.loss_across_documents,
            place=node_data.place,
        )
        ring = SegmentRing.create(
            segments_path(launch.rank_file), term=launch.term, attempt=launch.attempt, rank=launch.rank
        )
        with MetricsLog(launch.run_dir / "metrics.jsonl") as metrics:
            loop = Loop(
                launch=launch,
                plan=plan,
                state=state,
                feed=feed,
                rank_file=rank_file,
                metrics=metrics,
                at_point=at_point,
                saver=checkpointer,
                snapshots=snapshots,
                peak_flops=peak_flops,
                clock=segment_clock(device.torch_device, ring.append),
            )
            code = loop.run()
        distributed.destroy_process_group()
        return code


def _resume(
    launch: RankLaunch, start: Start, checkpointer: Checkpointer, snapshots: Snapshots | None
) -> None:
    if launch.resume is None:
        return
    if launch.tier == "durable":
        checkpointer.resume(launch.resume, start.manifest)
    elif snapshots is not None:
        snapshots.resume(launch.resume)
    else:
        raise CheckpointCorruptError(
            f"snapshot in memory of step {launch.resume.step}: this rank has no room for snapshots",
            step=launch.resume.step,
            attempt=launch.resume.attempt,
            tier=launch.tier,
        )


def _join(launch: RankLaunch, plan: Plan, device: Device) -> Groups:
    connect(
        launch.store_host,
        launch.store_port,
        f"{launch.term}.{launch.attempt}/",
        rank=launch.rank,
        world_size=launch.world_size,
        backend=device.backend,
    )
    return build_groups(plan.layout)


def _build(launch: RankLaunch, plan: Plan, groups: Groups, device: Device) -> EngineState:
    megatron = plan.megatron
    dtype = device.dtype(megatron.precision)
    attention = choose_backend(megatron.model.attention, device.torch_device, dtype)
    overlap = decide(
        megatron.overlap,
        plan.layout,
        block=plan.shape.block,
        obstacle=tensor_obstacle(groups, device.torch_device, launch.local_world_size),
    )
    if launch.rank == 0:
        print(
            f"attention: {attention.backend.name} ({attention.reason})",
            *overlap.features,
            sep="\n",
            flush=True,
        )
    state = build_engine(
        plan.shape,
        megatron.optimizer,
        groups,
        sequence_length=megatron.data.sequence_length,
        device=device.torch_device,
        dtype=dtype,
        seed=megatron.seed if launch.resume is None else None,
        recompute=megatron.recompute,
        backend=attention.backend,
        overlap=overlap,
    )
    if megatron.compile:
        compile_chunks(state.chunks)
    return state


def _peak_flops(launch: RankLaunch, device: Device) -> float:
    """FLOP/s: rated for an accelerator, measured by this node's ranks in their first attempt for a CPU."""
    if device.torch_device.type != "cpu":
        return rated_flops(device.name)
    peak_file = PeakFile(launch.run_dir, launch.node)
    known = peak_file.read()
    if known is not None:
        return known
    measured = measure_flops()
    if launch.local_rank == 0:
        peak_file.write(measured)
    return measured
