"""CEL rules equivalent to the checks across fields in `megascale.job`, by their section of `spec`.

A rule is attached to the innermost section that contains all its fields. Rules that need the model's shape
are true if the shape is not given, which another rule reports.
"""

from __future__ import annotations

from typing import Final

from megascale.job.api import OWN_FOLDERS, OWN_PREFIX
from megascale_operator.crd.cel_rule import CelRule, either, implies, text, texts
from megascale_operator.crd.megatron import DATA, OPTIMIZER, PARALLELISM, megatron_rules, model_rules
from megascale_operator.crd.recovery import LOG_RULE, LOG_RULE_IDS, OVERRIDE_MATCH, RECOVERY, SHADOW

_LEAST: Final = either("self", "minNodes", "self.nodes")
"""Expression for the least number of nodes that the job may shrink to."""


def _fits(nodes: str) -> tuple[str, str, str, str]:
    """Return expressions for whether layout and batch divide evenly over the ranks of `nodes` nodes.

    They are for the number of ranks, the global batch, interleaved pipelines, and the batch ramp.
    """
    megatron = "self.runtime.megatron"
    layout, data = f"{megatron}.parallelism", f"{megatron}.data"
    world = f"({nodes} * self.ranksPerNode)"
    replica = f"({layout}.tensor * {layout}.pipeline * {layout}.context)"
    wave = f"({data}.microBatch * ({world} / {replica}))"
    interleaved = f"({layout}.interleave == 1 || {data}.globalBatch / {wave} % {layout}.pipeline == 0)"
    unit = f"({wave} * ({layout}.interleave == 1 ? 1 : {layout}.pipeline))"
    ramp = f"(!has({data}.batchRamp) || {data}.batchRamp.increment % {unit} == 0)"
    return f"{world} % {replica} == 0", f"{data}.globalBatch % {wave} == 0", interleaved, ramp


def _size_rules() -> list[CelRule]:
    """Return the rules for `nodes`, `minNodes` and the parallel layout."""
    megatron = "self.runtime.megatron"
    trains = f"has({megatron})"
    ranks, batch, interleaved, ramp = _fits("self.nodes")
    return [
        CelRule(f"{_LEAST} <= self.nodes", "minNodes must not be more than nodes", ".minNodes"),
        CelRule(
            implies(trains, ranks),
            "nodes x ranksPerNode must be a multiple of tensor x pipeline x context",
            ".runtime.megatron.parallelism",
        ),
        CelRule(
            implies(f"{trains} && {ranks}", batch),
            "globalBatch must be a multiple of microBatch x data-parallel size,"
            " which is nodes x ranksPerNode / (tensor x pipeline x context)",
            ".runtime.megatron.data.globalBatch",
        ),
        CelRule(
            implies(f"{trains} && {ranks} && {batch}", interleaved),
            "with interleave the micro-batches per step and rank must be a multiple of pipeline",
            ".runtime.megatron.data.globalBatch",
        ),
        CelRule(
            implies(f"{trains} && {ranks} && {batch} && {interleaved}", ramp),
            "the ramp's increment must be a multiple of microBatch x data-parallel size,"
            " and with interleave of that times pipeline",
            ".runtime.megatron.data.batchRamp.increment",
        ),
        CelRule(
            implies(
                f"{trains} && {ranks} && {batch} && {interleaved} && {ramp} && {_LEAST} < self.nodes",
                " && ".join(_fits(_LEAST)),
            ),
            "layout and globalBatch must fit minNodes x ranksPerNode ranks too",
            ".minNodes",
        ),
    ]


def _spec_rules() -> list[CelRule]:
    schedule = "self.runtime.megatron.optimizer.schedule"
    faults = "self.faults.all(fault, {})"
    saved = (
        "fault.point == 'step' || fault.step == self.steps || fault.step % self.checkpoint.everySteps == 0"
    )
    resized = [
        CelRule(f"oldSelf.suspend || {same}", f"{name} can be changed only while suspend is true", f".{name}")
        for name, same in (
            ("nodes", "self.nodes == oldSelf.nodes"),
            ("spareNodes", "self.spareNodes == oldSelf.spareNodes"),
            ("minNodes", f"{_LEAST} == {_LEAST.replace('self', 'oldSelf')}"),
            (
                "health.heartbeatSeconds",  # agents read it when they start
                "self.health.heartbeatSeconds == oldSelf.health.heartbeatSeconds",
            ),
        )
    ]
    return [
        *_size_rules(),
        CelRule(
            implies("has(self.runtime.megatron)", f"{schedule}.warmupSteps <= self.steps"),
            "warmupSteps must not be more than steps",
            ".runtime.megatron.optimizer.schedule.warmupSteps",
        ),
        CelRule(
            implies(
                f"has(self.runtime.megatron) && {schedule}.warmupSteps <= self.steps"
                f" && has({schedule}.decaySteps)",
                f"{schedule}.warmupSteps <= {schedule}.decaySteps",
            ),
            "warmupSteps must not be more than decaySteps",
            ".runtime.megatron.optimizer.schedule.warmupSteps",
        ),
        CelRule(
            faults.format("!has(fault.rank) || fault.rank < self.nodes * self.ranksPerNode"),
            "rank of a fault must be less than nodes x ranksPerNode",
            ".faults",
        ),
        CelRule(
            faults.format("fault.step <= self.steps"),
            "step of a fault must not be more than steps",
            ".faults",
        ),
        CelRule(
            faults.format(f"fault.step > self.steps || {saved}"),
            "a fault at point save or commit must be in a step that saves:"
            " a multiple of checkpoint.everySteps, or the last step",
            ".faults",
        ),
        LOG_RULE_IDS,
        *resized,
    ]


def _transport() -> CelRule:
    """Return the rule that 4.096 us x 2^ibTimeout x ibRetryCount is shorter than the NCCL timeout.

    Both sides are in nanoseconds. CEL has no power function, so the rule contains a list of powers of two.
    """
    powers = ", ".join(str(2**exponent) for exponent in range(32))
    waits = f"4096 * [{powers}][self.ibTimeout] * self.ibRetryCount"
    return CelRule(
        f"self.profile != 'tolerant' || {waits} < self.ncclTimeoutSeconds * 1000000000",
        "ncclTimeoutSeconds must be longer than the transport waits: 4.096 us x 2^ibTimeout x ibRetryCount",
        ".ncclTimeoutSeconds",
    )


_FAULT: Final = [
    CelRule(
        f"self.kind in {texts(kinds)} ? has(self.{name}) : !has(self.{name})",
        f"{name} must be given for {' and '.join(kinds)}, and for no other kind",
        f".{name}",
    )
    for name, kinds in (("rank", ("killRank", "stopRank", "slowRank")), ("node", ("killNode", "stopNode")))
]


def _keys_are_not_ours(section: str) -> CelRule:
    return CelRule(
        f"!has(self.{section}) || self.{section}.all(key, !key.startsWith({text(OWN_PREFIX)}))",
        f"keys that begin with {OWN_PREFIX} are the operator's",
        f".{section}",
    )


def _mount_rule() -> CelRule:
    terms = [
        f"self.mountPath != {text(folder)} && !self.mountPath.startsWith({text(folder + '/')})"
        for folder in OWN_FOLDERS
    ]
    return CelRule(" && ".join(terms), f"the operator mounts {', '.join(OWN_FOLDERS)} itself", ".mountPath")


def cel_rules() -> dict[str, list[CelRule]]:
    """Return the path of each section -> its CEL rules."""
    same_runtime = "has(self.megatron) == has(oldSelf.megatron)"
    same_uri = "has(self.uri) == has(oldSelf.uri) && (!has(self.uri) || self.uri == oldSelf.uri)"
    return {
        "spec": _spec_rules(),
        "spec.ranksPerNode": [CelRule("self == oldSelf", "ranksPerNode cannot be changed")],
        "spec.managedBy": [CelRule("self == oldSelf", "managedBy cannot be changed")],
        "spec.runtime": [CelRule(same_runtime, "megatron and command cannot take each other's place")],
        "spec.runtime.megatron": megatron_rules(),
        "spec.runtime.megatron.model": model_rules(),
        "spec.runtime.megatron.parallelism": PARALLELISM,
        "spec.runtime.megatron.data": DATA,
        "spec.runtime.megatron.optimizer": OPTIMIZER,
        "spec.network": [_transport()],
        "spec.checkpoint": [
            CelRule(same_uri, "uri cannot be changed: the checkpoints are there", ".uri"),
        ],
        "spec.health": [
            CelRule(
                "self.silenceSeconds >= 2 * self.heartbeatSeconds",
                "silenceSeconds must be at least twice heartbeatSeconds",
                ".silenceSeconds",
            )
        ],
        "spec.detection.shadow": SHADOW,
        "spec.recovery": RECOVERY,
        "spec.recovery.overrides.match": OVERRIDE_MATCH,
        "spec.logRules": LOG_RULE,
        "spec.faults": _FAULT,
        "spec.scheduling": [
            CelRule("self.gang != 'kueue' || has(self.queue)", "queue is required for gang kueue", ".queue"),
            CelRule(
                "self.gang != 'none' || !has(self.queue)", "queue has no meaning for gang none", ".queue"
            ),
        ],
        "spec.template.metadata": [_keys_are_not_ours("labels"), _keys_are_not_ours("annotations")],
        "spec.template.spec.volumes": [
            CelRule(
                "!self.name.startsWith('megascale-')",
                "names that begin with megascale- are the operator's",
                ".name",
            )
        ],
        "spec.template.spec.containers.volumeMounts": [_mount_rule()],
        "spec.template.spec.containers.env": [
            CelRule(
                "!has(self.value) || !has(self.valueFrom)", "value and valueFrom are both given", ".value"
            )
        ],
    }


KEYED: Final = {
    "spec.detection.shadow": (),
    "spec.scheduling.topologyKeys": (),
    "spec.template.spec.containers": ("name",),
    "spec.template.spec.containers.env": ("name",),
    "spec.template.spec.containers.volumeMounts": ("mountPath",),
    "spec.template.spec.volumes": ("name",),
    "spec.template.spec.imagePullSecrets": ("name",),
    "status.conditions": ("type",),
}
"""Path of a list -> fields that identify its entries, () if they are identified by their value."""
