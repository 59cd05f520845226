"""CEL twins of the rules between fields in `megascale.job`, by the place in `spec` where they stand.

A rule stands at the lowest section that has all its fields. Rules that need a model's shape are silent where
the shape is not given: another rule says so. Regular expressions in `recovery.rules` have no twin, since
Python's differ from RE2: the operator refuses such a job with a condition.
"""

from __future__ import annotations

from typing import Final

from pydantic.alias_generators import to_camel

from megascale.job.presets import PRESETS
from megascale.job.rules import BYTE_VOCAB_SIZE
from megascale.job.schema import CAUSES
from megascale.job.template import OWN_FOLDERS, OWN_PREFIX
from megascale_operator.crd.rule import Rule, either, implies, table, text, texts

_LEAST: Final = either("self", "minNodes", "self.nodes")
"""What the job may shrink to."""


def _shape(model: str, name: str, otherwise: str) -> str:
    """A field of the model: as given, else the preset's, else `otherwise`."""
    values = {preset: shape[name] for preset, shape in PRESETS.items() if name in shape}
    preset = f"{model}.preset"
    listed = "" if len(values) == len(PRESETS) else f" && {preset} in {table(values)}"
    from_preset = f"(has({preset}){listed} ? {table(values)}[{preset}] : {otherwise})"
    return either(model, to_camel(name), from_preset)


class _Model:
    """Expressions for the shape of the model at `at`."""

    def __init__(self, at: str) -> None:
        names = ("numLayers", "hiddenSize", "attentionHeads")
        given = " && ".join(f"has({at}.{name})" for name in names)
        self.known = f"has({at}.preset) || ({given})"
        self.layers = _shape(at, "num_layers", "0")
        self.hidden = _shape(at, "hidden_size", "0")
        self.heads = _shape(at, "attention_heads", "1")
        self.kv_heads = _shape(at, "kv_heads", self.heads)
        self.ffn = _shape(at, "ffn_hidden_size", f"4 * {self.hidden}")
        self.experts = _shape(at, "experts", "0")
        self.experts_per_token = _shape(at, "experts_per_token", "1")
        self.block = _shape(at, "block", text("parallel"))
        self.vocabulary = _shape(at, "vocab_size", str(BYTE_VOCAB_SIZE))


def _model_rules() -> list[Rule]:
    model = _Model("self")
    required = [
        Rule(
            f"has(self.preset) || has(self.{name})",
            f"{name} is required, or a preset",
            f".{name}",
            "FieldValueRequired",
        )
        for name in ("numLayers", "hiddenSize", "attentionHeads")
    ]
    width = f"{model.hidden} % {model.heads} == 0"
    return [
        *required,
        Rule(implies(model.known, width), "hiddenSize must be a multiple of attentionHeads", ".hiddenSize"),
        Rule(
            implies(f"({model.known}) && {width}", f"{model.hidden} / {model.heads} % 2 == 0"),
            "hiddenSize / attentionHeads must be even: rotary positions turn pairs of values",
            ".hiddenSize",
        ),
        Rule(
            implies(model.known, f"{model.heads} % {model.kv_heads} == 0"),
            "kvHeads must divide attentionHeads",
            ".kvHeads",
        ),
        Rule(
            f"{model.experts} == 0 || {model.experts_per_token} <= {model.experts}",
            "expertsPerToken must not be more than experts",
            ".expertsPerToken",
        ),
        Rule(
            f"{model.experts} == 0 || {model.block} == 'serial'",
            "experts need block serial: the parallel block is not made for them",
            ".block",
        ),
        Rule("self == oldSelf", "the model cannot be changed: its checkpoints have this shape"),
    ]


def _megatron_rules() -> list[Rule]:
    model, layout = _Model("self.model"), "self.parallelism"
    known, tensor = model.known, f"{layout}.tensor"

    def share(value: str, field: str) -> Rule:
        held = implies(known, f"{value} % {tensor} == 0")
        return Rule(held, f"{field} must be a multiple of tensor", f".model.{field}")

    routed = implies(f"{model.experts} != 0 && {tensor} > 1", f"{layout}.sequence")
    small = "size(self.data.prepareFrom) > 0 && self.data.tokenizer == 'byte'"
    grouped = implies(f"({known}) && {model.kv_heads} != {model.heads}", f"{model.kv_heads} % {tensor} == 0")
    return [
        Rule(routed, "experts over several tensor ranks need sequence parallelism", ".parallelism.sequence"),
        Rule(grouped, "kvHeads must be a multiple of tensor", ".model.kvHeads"),
        Rule(
            implies(known, f"{model.layers} % ({layout}.pipeline * {layout}.interleave) == 0"),
            "numLayers must be a multiple of pipeline x interleave",
            ".model.numLayers",
        ),
        share(model.heads, "attentionHeads"),
        share(model.ffn, "ffnHiddenSize"),
        Rule(
            implies(f"{layout}.sequence", f"self.data.sequenceLength % {tensor} == 0"),
            "with sequence parallelism sequenceLength must be a multiple of tensor",
            ".data.sequenceLength",
        ),
        Rule(
            implies(small, f"{model.vocabulary} >= {BYTE_VOCAB_SIZE}"),
            f"vocabSize must be at least {BYTE_VOCAB_SIZE}, the token ids that data.prepareFrom makes",
            ".model.vocabSize",
        ),
        Rule("self.seed == oldSelf.seed", "seed cannot be changed: it decides the order of samples", ".seed"),
    ]


_PARALLELISM: Final = [
    Rule("!self.sequence || self.tensor > 1", "sequence parallelism needs tensor of 2 or more", ".sequence"),
    Rule("self.context == 1", "context must be 1: windowed attention is not split over ranks", ".context"),
    Rule(
        "self.interleave == 1 || self.pipeline > 1", "interleave needs pipeline of 2 or more", ".interleave"
    ),
]
_DATA: Final = [
    Rule(
        "has(self.path) || size(self.blend) > 0", "path or blend is required", ".path", "FieldValueRequired"
    ),
    Rule(
        "!has(self.path) || size(self.blend) == 0",
        "blend is given beside path, expected one of them",
        ".blend",
    ),
    Rule(
        "size(self.blend) == 0 || size(self.prepareFrom) == 0",
        "prepareFrom makes one dataset, but data is a blend of several",
        ".prepareFrom",
    ),
]
_OPTIMIZER: Final = [
    Rule("self.minLr <= self.lr", "minLr must not be above lr", ".minLr"),
    Rule("self.name == oldSelf.name", "the optimizer cannot be changed: checkpoints hold its state", ".name"),
]


def _fits(nodes: str) -> str:
    """Layout and batch divide evenly over the ranks of `nodes` nodes."""
    megatron = "self.runtime.megatron"
    layout, data = f"{megatron}.parallelism", f"{megatron}.data"
    world = f"({nodes} * self.ranksPerNode)"
    replica = f"({layout}.tensor * {layout}.pipeline * {layout}.context)"
    wave = f"({data}.microBatch * ({world} / {replica}))"
    interleaved = f"({layout}.interleave == 1 || {data}.globalBatch / {wave} % {layout}.pipeline == 0)"
    return f"{world} % {replica} == 0 && {data}.globalBatch % {wave} == 0 && {interleaved}"


def _size_rules() -> list[Rule]:
    """nodes, minNodes and the layout."""
    megatron = "self.runtime.megatron"
    trains = f"has({megatron})"
    ranks, batch, interleaved = _fits("self.nodes").split(" && ")
    return [
        Rule(f"{_LEAST} <= self.nodes", "minNodes must not be more than nodes", ".minNodes"),
        Rule(
            implies(trains, ranks),
            "nodes x ranksPerNode must be a multiple of tensor x pipeline x context",
            ".runtime.megatron.parallelism",
        ),
        Rule(
            implies(f"{trains} && {ranks}", batch),
            "globalBatch must be a multiple of microBatch x data-parallel size,"
            " which is nodes x ranksPerNode / (tensor x pipeline x context)",
            ".runtime.megatron.data.globalBatch",
        ),
        Rule(
            implies(f"{trains} && {ranks} && {batch}", interleaved),
            "with interleave the micro-batches per step and rank must be a multiple of pipeline",
            ".runtime.megatron.data.globalBatch",
        ),
        Rule(
            implies(f"{trains} && {_fits('self.nodes')} && {_LEAST} < self.nodes", _fits(_LEAST)),
            "layout and globalBatch must fit minNodes x ranksPerNode ranks too",
            ".minNodes",
        ),
    ]


def _spec_rules() -> list[Rule]:
    schedule = "self.runtime.megatron.optimizer.schedule"
    faults = "self.faults.all(fault, {})"
    saved = (
        "fault.point == 'step' || fault.step == self.steps || fault.step % self.checkpoint.everySteps == 0"
    )
    resized = [
        Rule(f"oldSelf.suspend || {same}", f"{name} can be changed only while suspend is true", f".{name}")
        for name, same in (
            ("nodes", "self.nodes == oldSelf.nodes"),
            ("spareNodes", "self.spareNodes == oldSelf.spareNodes"),
            ("minNodes", f"{_LEAST} == {_LEAST.replace('self', 'oldSelf')}"),
        )
    ]
    return [
        *_size_rules(),
        Rule(
            implies("has(self.runtime.megatron)", f"{schedule}.warmupSteps <= self.steps"),
            "warmupSteps must not be more than steps",
            ".runtime.megatron.optimizer.schedule.warmupSteps",
        ),
        Rule(
            faults.format("!has(fault.rank) || fault.rank < self.nodes * self.ranksPerNode"),
            "rank of a fault must be less than nodes x ranksPerNode",
            ".faults",
        ),
        Rule(
            faults.format("fault.step <= self.steps"),
            "step of a fault must not be more than steps",
            ".faults",
        ),
        Rule(
            faults.format(f"fault.step > self.steps || {saved}"),
            "a fault at point save or commit must be in a step that saves:"
            " a multiple of checkpoint.everySteps, or the last step",
            ".faults",
        ),
        *resized,
    ]


def _transport() -> Rule:
    """4.096 us x 2^t x tries < timeout, in units of 2^t x 4.096 ns / 1000; CEL has no power."""
    powers = ", ".join(str(2**exponent) for exponent in range(32))
    waits = f"4096 * [{powers}][self.ibTimeout] * self.ibRetryCount"
    return Rule(
        f"self.profile != 'tolerant' || {waits} < self.ncclTimeoutSeconds * 1000000000",
        "ncclTimeoutSeconds must be longer than the transport waits: 4.096 us x 2^ibTimeout x ibRetryCount",
        ".ncclTimeoutSeconds",
    )


_FAULT: Final = [
    Rule(
        f"self.kind in {texts(kinds)} ? has(self.{name}) : !has(self.{name})",
        f"{name} must be given for {' and '.join(kinds)}, and for no other kind",
        f".{name}",
    )
    for name, kinds in (("rank", ("killRank", "stopRank")), ("node", ("killNode", "stopNode")))
]
_MATCH_FIELDS: Final = ("cause", "rule", "category", "xid", "errorType", "message")
_CAUSE_LIST: Final = ", ".join(CAUSES)


def _keys_are_not_ours(section: str) -> Rule:
    return Rule(
        f"!has(self.{section}) || self.{section}.all(key, !key.startsWith({text(OWN_PREFIX)}))",
        f"keys that begin with {OWN_PREFIX} are the operator's",
        f".{section}",
    )


def _mount_rule() -> Rule:
    terms = [
        f"self.mountPath != {text(folder)} && !self.mountPath.startsWith({text(folder + '/')})"
        for folder in OWN_FOLDERS
    ]
    return Rule(" && ".join(terms), f"the operator mounts {', '.join(OWN_FOLDERS)} itself", ".mountPath")


def rules() -> dict[str, list[Rule]]:
    """Every rule by its place."""
    same_runtime = "has(self.megatron) == has(oldSelf.megatron)"
    same_uri = "has(self.uri) == has(oldSelf.uri) && (!has(self.uri) || self.uri == oldSelf.uri)"
    return {
        "spec": _spec_rules(),
        "spec.ranksPerNode": [Rule("self == oldSelf", "ranksPerNode cannot be changed")],
        "spec.managedBy": [Rule("self == oldSelf", "managedBy cannot be changed")],
        "spec.runtime": [Rule(same_runtime, "megatron and command cannot take each other's place")],
        "spec.runtime.megatron": _megatron_rules(),
        "spec.runtime.megatron.model": _model_rules(),
        "spec.runtime.megatron.parallelism": _PARALLELISM,
        "spec.runtime.megatron.data": _DATA,
        "spec.runtime.megatron.optimizer": _OPTIMIZER,
        "spec.network": [_transport()],
        "spec.checkpoint": [
            Rule(same_uri, "uri cannot be changed: the checkpoints are there", ".uri"),
        ],
        "spec.health": [
            Rule(
                "self.silenceSeconds >= 2 * self.heartbeatSeconds",
                "silenceSeconds must be at least twice heartbeatSeconds",
                ".silenceSeconds",
            )
        ],
        "spec.recovery": [
            Rule(
                f"self.budgets.all(cause, cause in {texts(CAUSES)})",
                f"budgets are by cause: {_CAUSE_LIST}",
                ".budgets",
            )
        ],
        "spec.recovery.rules.match": [
            Rule(
                f"!has(self.cause) || self.cause in {texts(CAUSES)}",
                f"cause must be one of {_CAUSE_LIST}",
                ".cause",
            ),
            Rule(
                " || ".join(f"has(self.{field})" for field in _MATCH_FIELDS),
                "at least one field must be given, else the rule would be for every incident",
            ),
        ],
        "spec.faults": _FAULT,
        "spec.scheduling": [
            Rule("self.gang != 'kueue' || has(self.queue)", "queue is required for gang kueue", ".queue"),
            Rule("self.gang != 'none' || !has(self.queue)", "queue has no meaning for gang none", ".queue"),
        ],
        "spec.template.metadata": [_keys_are_not_ours("labels"), _keys_are_not_ours("annotations")],
        "spec.template.spec.volumes": [
            Rule(
                "!self.name.startsWith('megascale-')",
                "names that begin with megascale- are the operator's",
                ".name",
            )
        ],
        "spec.template.spec.containers.volumeMounts": [_mount_rule()],
        "spec.template.spec.containers.env": [
            Rule("!has(self.value) || !has(self.valueFrom)", "value and valueFrom are both given", ".value")
        ],
    }


KEYED: Final = {
    "spec.scheduling.topologyKeys": (),
    "spec.template.spec.containers": ("name",),
    "spec.template.spec.containers.env": ("name",),
    "spec.template.spec.containers.volumeMounts": ("mountPath",),
    "spec.template.spec.volumes": ("name",),
    "spec.template.spec.imagePullSecrets": ("name",),
    "status.conditions": ("type",),
}
"""Lists whose entries are told apart by a field, or (no field) by their value."""
