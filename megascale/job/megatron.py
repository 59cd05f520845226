"""`spec.runtime.megatron`: the model, its layout over ranks, optimizer and data."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from pydantic.alias_generators import to_camel

from megascale.job.base import MAX_INT, Count, Natural, Problem, Section, Words, did_you_mean, refuse
from megascale.job.data import BYTE_VOCAB_SIZE, Data
from megascale.job.presets import PRESETS

VOCAB_MULTIPLE: Final = 64
"""The vocabulary is padded to a multiple of this under every layout, so that their losses are equal."""
Ways = Annotated[int, Field(ge=1, le=100_000)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
FromPreset = Words(default="the preset's; required without a preset")
PresetName = Literal["tiny", "tiny-moe", "gpt-175b", "gpt-530b", "llama-7b", "llama-13b", "llama-65b", "dbrx"]


def _leave_defaults_to_presets(schema: dict[str, Any]) -> None:
    """An API server writes defaults into objects; here they would hide the preset's values."""
    schema.pop("required", None)
    for field in schema["properties"].values():
        field.pop("default", None)


class Model(Section):
    """The transformer. A preset fills what is left out; fields given beside it win."""

    model_config = ConfigDict(json_schema_extra=_leave_defaults_to_presets)

    preset: PresetName | None = None
    """A shape by name; its values stand for fields that are left out."""
    num_layers: Annotated[Count, FromPreset]
    """Transformer layers; a multiple of pipeline x interleave."""
    hidden_size: Annotated[Count, FromPreset]
    """Width of the residual stream; a multiple of attentionHeads."""
    attention_heads: Annotated[Count, FromPreset]
    """Query heads per layer; a multiple of tensor."""
    kv_heads: Annotated[Count, Words(default="attentionHeads")] = Field(
        default_factory=lambda fields: fields["attention_heads"]
    )
    """Key and value heads per layer; fewer than attentionHeads is grouped-query attention."""
    ffn_hidden_size: Annotated[Count, Words(default="4 x hiddenSize")] = Field(
        default_factory=lambda fields: 4 * fields["hidden_size"]
    )
    """Width inside the MLP; with swiglu the width of each of its two branches."""
    block: Literal["parallel", "serial"] = "parallel"
    """parallel: y = x + Attention(LN(x)) + MLP(LN(x)), one norm, half the tensor-parallel collectives
    (MegaScale 3.1); serial: the MLP reads what attention wrote."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation in front of each block and before the output layer."""
    qk_norm: bool = False
    """Normalise each head's queries and keys: keeps the parallel block stable at large sizes (ViT-22B)."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the MLP."""
    experts: Count | None = None
    """Mixture of experts: MLPs per layer that a router chooses from; null = one MLP for every token."""
    experts_per_token: Count = 1
    """Experts that each token goes through."""
    rotary_base: PositiveNumber = 10_000.0
    """Base of the rotary position frequencies; larger reaches further."""
    window: Count | None = None
    """Sliding-window attention: how many keys a token sees, itself included (MegaScale 3.1);
    null = all before it."""
    window_pattern: Annotated[
        str,
        Field(pattern=r"^[SL]+$", max_length=1024),
        Words("letters S (layer with the window) and L (layer that sees all keys), such as S, SL or SSSL"),
    ] = "S"
    """Which layers have the window, repeated over the layers: S has it, L sees all keys; SL alternates."""
    within_documents: bool = False
    """Attention stays within documents; false: over the borders of those packed into a sample."""
    attention: Literal["auto", "flash", "varlen", "reference"] = "auto"
    """Who computes attention: flash = the flash-attn package, varlen = torch's FlashAttention-2, reference =
    torch with an explicit mask; auto = the first of them that runs here."""
    tied_embeddings: bool = True
    """Use the input embedding as the output layer too."""
    vocab_size: Annotated[int, Field(ge=2, le=MAX_INT)] = BYTE_VOCAB_SIZE
    """Token ids the model knows; the default is the byte tokenizer's: 256 bytes and end-of-document."""
    init_std: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Standard deviation of the initial weights."""

    @model_validator(mode="before")
    @classmethod
    def _merge_preset(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        preset = given["preset"]
        if preset not in PRESETS:
            message = f'got "{preset}", expected one of {", ".join(PRESETS)}'
            refuse([Problem(("preset",), message, did_you_mean(str(preset), PRESETS))])
        # null is "left out", as for Kubernetes, where it never reaches the stored object
        unset = {str(info.alias) for info in cls.model_fields.values() if info.default is None}
        given = {name: value for name, value in given.items() if value is not None or name not in unset}
        missing = {name: value for name, value in PRESETS[preset].items() if name not in given}
        return {to_camel(name): value for name, value in missing.items()} | given


class Parallelism(Section):
    """How the model is cut over ranks; what remains of the ranks is data parallel."""

    tensor: Ways = 1
    """Ranks that share each layer; keep it within a node."""
    pipeline: Ways = 1
    """Stages the layers are split into."""
    context: Ways = 1
    """Ranks that share each sequence; 1 so far: for long sequences use tensor with sequence: true."""
    expert: Annotated[int, Field(ge=1, le=1), Words("1: experts are cut over the tensor ranks")] = 1
    """Ranks that share the experts of a mixture; 1 so far: each expert is cut over the tensor ranks."""
    interleave: Ways = 1
    """Chunks of layers per pipeline stage: a smaller bubble for more messages (MegaScale 3.2)."""
    sequence: bool = False
    """Sequence parallelism: split norms and dropout over the tensor ranks too."""

    _data: int = PrivateAttr(default=1)

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Data-parallel size at full strength: nodes x ranksPerNode / ranks_per_replica."""
        return self._data

    def set_world(self, world_size: int) -> None:
        """Called by the job once its number of ranks is known."""
        self._data = world_size // self.ranks_per_replica


class Schedule(Section):
    """How the learning rate moves over the steps of the job."""

    name: Literal["cosine", "constant", "wsd"] = "cosine"
    """cosine: from lr down to minLr at decaySteps; constant: lr throughout; wsd: lr, then straight down to
    minLr over the last decayFraction of decaySteps."""
    decay_steps: Annotated[Count | None, Words(default="spec.steps")] = None
    """Step at which cosine and wsd reach minLr and stay there. Set it before a job is made longer: while it
    is left out, another spec.steps bends the whole curve."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Part of decaySteps that wsd decays over."""
    warmup_steps: Natural = 0
    """The rate rises linearly from 0 to lr over these steps."""


class Optimizer(Section):
    """The optimizer and its learning rate."""

    name: Literal["lamb", "adamw", "lion"] = "lamb"
    """lamb: Adam with a trust ratio per parameter, at any weightDecay, for large batches (MegaScale 3.1);
    adamw: AdamW; lion: the sign of a momentum, with half of Adam's state; it wants a smaller lr and a larger
    weightDecay."""
    lr: Annotated[float, Field(gt=0, le=100)] = 0.002
    """Highest learning rate, reached after the warm-up."""
    min_lr: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Learning rate at the end of a cosine or wsd schedule."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled weight decay; norms and biases are left out."""
    beta1: Decay = 0.9
    """Decay per step of the mean of the gradients."""
    beta2: Decay = 0.95
    """Decay per step of the mean of the squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Added to the root of the second moment."""
    clip_grad: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    schedule: Schedule = Schedule()
    """How the learning rate moves."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_lr > self.lr:
            refuse(
                [
                    Problem(
                        ("minLr",), f"{self.min_lr:g} is above lr {self.lr:g}", "minLr is where the rate ends"
                    )
                ]
            )
        return self


class Overlap(Section):
    """Communication beside compute (MegaScale 3.2); what is not supported stays off, and the log says why."""

    gradient_reduce: bool = True
    """Reduce gradients of later layers while earlier ones compute theirs."""
    parameter_gather: bool = True
    """Gather updated parameters during the next forward pass, the first of them while its data loads."""
    pipeline: bool = True
    """Send and receive between stages while computing; needs interleave."""
    tensor: bool = False
    """Gather and reduce-scatter inside the parallel block's products, over symmetric memory; needs sequence
    and tensor-parallel ranks whose GPUs read each other's memory (NVLink). Off by default: it has not been
    run on GPUs."""
    bucket_size: Annotated[Count | None, Words(default="40 million, or 1 million x data-parallel size")] = (
        None
    )
    """Parameters per message of the data-parallel ranks."""


class Megatron(Section):
    """Train a GPT with the Megatron-core engine."""

    model: Model
    """The transformer."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How the model is cut over ranks."""
    optimizer: Optimizer = Optimizer()
    """The optimizer and its learning rate."""
    data: Data
    """Training data and batch sizes."""
    overlap: Overlap = Overlap()
    """Communication beside compute."""
    seed: Natural = 1234
    """Seed of the weights and of the order of the samples."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on the CPU."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass to save memory: none; selective: those of attention;
    full: all but each layer's input."""
    compile: bool = False
    """Compile layers and loss to fused kernels (torch.compile) in the first step, which takes minutes."""
