"""CEL rules for `spec.runtime.megatron`, equivalent to the checks of its pydantic models."""

from __future__ import annotations

from typing import Final

from pydantic.alias_generators import to_camel

from megascale.job.api import BYTE_VOCAB_SIZE, PRESETS, VOCAB_MULTIPLE
from megascale_operator.crd.cel_rule import CelRule, either, implies, table


def _shape(model: str, name: str, otherwise: str) -> str:
    """Return an expression for a field of the model: as given, else the preset's, else `otherwise`."""
    values = {preset: shape[name] for preset, shape in PRESETS.items() if name in shape}
    preset = f"{model}.preset"
    listed = "" if len(values) == len(PRESETS) else f" && {preset} in {table(values)}"
    from_preset = f"(has({preset}){listed} ? {table(values)}[{preset}] : {otherwise})"
    return either(model, to_camel(name), from_preset)


class _Model:
    """CEL expressions for the shape of the model at `at`; `known` is whether the shape is given."""

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
        self.vocabulary = _shape(at, "vocab_size", str(BYTE_VOCAB_SIZE))


def model_rules() -> list[CelRule]:
    model = _Model("self")
    required = [
        CelRule(
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
        CelRule(
            implies(model.known, width), "hiddenSize must be a multiple of attentionHeads", ".hiddenSize"
        ),
        CelRule(
            implies(f"({model.known}) && {width}", f"{model.hidden} / {model.heads} % 2 == 0"),
            "hiddenSize / attentionHeads must be even: rotary positions turn pairs of values",
            ".hiddenSize",
        ),
        CelRule(
            implies(model.known, f"{model.heads} % {model.kv_heads} == 0"),
            "kvHeads must divide attentionHeads",
            ".kvHeads",
        ),
        CelRule(
            f"{model.experts} == 0 || {model.experts_per_token} <= {model.experts}",
            "expertsPerToken must not be more than experts",
            ".expertsPerToken",
        ),
        CelRule("self == oldSelf", "the model cannot be changed: its checkpoints have this shape"),
    ]


def megatron_rules() -> list[CelRule]:
    model, layout = _Model("self.model"), "self.parallelism"
    known, tensor = model.known, f"{layout}.tensor"

    def share(value: str, field: str) -> CelRule:
        held = implies(known, f"{value} % {tensor} == 0")
        return CelRule(held, f"{field} must be a multiple of tensor", f".model.{field}")

    routed = implies(f"{model.experts} != 0 && {tensor} > 1", f"{layout}.sequence")
    small = "size(self.data.prepareFrom) > 0 && self.data.tokenizer == 'byte'"
    grouped = implies(f"({known}) && {model.kv_heads} != {model.heads}", f"{model.kv_heads} % {tensor} == 0")
    padded = f"({model.vocabulary} + {VOCAB_MULTIPLE - 1}) / {VOCAB_MULTIPLE} * {VOCAB_MULTIPLE}"
    return [
        CelRule(
            routed, "experts over several tensor ranks need sequence parallelism", ".parallelism.sequence"
        ),
        CelRule(grouped, "kvHeads must be a multiple of tensor", ".model.kvHeads"),
        CelRule(
            implies(known, f"{model.layers} % ({layout}.pipeline * {layout}.interleave) == 0"),
            "numLayers must be a multiple of pipeline x interleave",
            ".model.numLayers",
        ),
        share(model.heads, "attentionHeads"),
        share(model.ffn, "ffnHiddenSize"),
        CelRule(
            f"{padded} % {tensor} == 0",
            f"vocabSize, padded to a multiple of {VOCAB_MULTIPLE}, must be a multiple of tensor",
            ".parallelism.tensor",
        ),
        CelRule(
            implies(f"{layout}.sequence", f"self.data.sequenceLength % {tensor} == 0"),
            "with sequence parallelism sequenceLength must be a multiple of tensor",
            ".data.sequenceLength",
        ),
        CelRule(
            implies(small, f"{model.vocabulary} >= {BYTE_VOCAB_SIZE}"),
            f"vocabSize must be at least {BYTE_VOCAB_SIZE}, the token ids that data.prepareFrom makes",
            ".model.vocabSize",
        ),
        CelRule(
            "self.seed == oldSelf.seed", "seed cannot be changed: it decides the order of samples", ".seed"
        ),
    ]


PARALLELISM: Final = [
    CelRule(
        "!self.sequence || self.tensor > 1", "sequence parallelism needs tensor of 2 or more", ".sequence"
    ),
    CelRule("self.context == 1", "context must be 1: windowed attention is not split over ranks", ".context"),
    CelRule(
        "self.interleave == 1 || self.pipeline > 1", "interleave needs pipeline of 2 or more", ".interleave"
    ),
]
DATA: Final = [
    CelRule(
        "has(self.path) || size(self.blend) > 0", "path or blend is required", ".path", "FieldValueRequired"
    ),
    CelRule(
        "!has(self.path) || size(self.blend) == 0",
        "blend is given beside path, expected one of them",
        ".blend",
    ),
    CelRule(
        "size(self.blend) == 0 || size(self.prepareFrom) == 0",
        "prepareFrom makes one dataset, but data is a blend of several",
        ".prepareFrom",
    ),
    CelRule(
        "!has(self.batchRamp) || self.batchRamp.start <= self.globalBatch"
        " && (self.globalBatch - self.batchRamp.start) % self.batchRamp.increment == 0",
        "globalBatch less the ramp's start must be a multiple of its increment",
        ".batchRamp.start",
    ),
]
OPTIMIZER: Final = [
    CelRule("self.minLr <= self.lr", "minLr must not be above lr", ".minLr"),
    CelRule(
        "self.name == oldSelf.name", "the optimizer cannot be changed: checkpoints hold its state", ".name"
    ),
]
