"""`spec.runtime.megatron.data`: where the tokens come from and how they are cut into batches."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from megascale.job.base import Count, Problem, Section, Text, Words, refuse

BYTE_TOKENIZER: Final = "byte"
BYTE_VOCAB_SIZE: Final = 257
"""Token ids of the byte tokenizer: 256 bytes and end-of-document."""


class BlendPart(Section):
    """One dataset of a blend."""

    path: Text
    """Prefix of its token files <path>.bin and <path>.idx."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Its share of the samples, relative to the other weights."""


class BatchRamp(Section):
    """Smaller batches in the first steps: start, then increment more after every everySteps steps."""

    start: Count
    """Samples of the first steps; globalBatch less a multiple of increment."""
    increment: Count
    """Samples added at a time; a multiple of microBatch x data-parallel size (x pipeline with interleave)."""
    every_steps: Count
    """Steps between two increments."""


class Data(Section):
    """Training data and how it is cut into batches."""

    path: Annotated[Text | None, Words("text", default="required without a blend")] = None
    """Prefix of the token files <path>.bin and <path>.idx, relative to the working directory."""
    blend: Annotated[list[BlendPart], Field(max_length=64)] = Field(default_factory=list)
    """In place of path: several datasets, drawn from by weight. At any step each has given its share of the
    samples to within a few samples, however small its weight."""
    prepare_from: Annotated[list[Text], Field(max_length=256)] = Field(default_factory=list)
    """Made into <path> before the first launch when it is missing: files and folders of text or JSONL (also
    .gz, .zst), or python-stdlib (the Python sources on this machine)."""
    tokenizer: Text = BYTE_TOKENIZER
    """Tokenizer of prepareFrom: byte, or the path of a tokenizer.json."""
    text_key: Text = "text"
    """Key of the text in JSONL files of prepareFrom."""
    skip_bad_documents: bool = False
    """Leave out documents of prepareFrom that cannot be used, and count them; else the first ends the run."""
    loader: Literal["auto", "shared", "direct"] = "auto"
    """shared: one process per node reads for all its ranks, one step ahead; direct: every rank reads for
    itself; auto: shared where a node has several ranks."""
    sequence_length: Annotated[int, Field(ge=1, le=2**24)]
    """Tokens per sample."""
    micro_batch: Count
    """Samples a rank works on at once; bounded by its memory."""
    global_batch: Count
    """Samples per step over all ranks; a multiple of microBatch x data-parallel size."""
    batch_ramp: BatchRamp | None = None
    """How the batch grows to globalBatch in the first steps; null = it is globalBatch from the first on."""
    loss_across_documents: bool = False
    """Count the prediction of a document's first token from the document before it in the loss; false: it is
    left out."""
    restart_order: bool = False
    """When a resume finds another seed, another sequenceLength or other tokens in a dataset, begin the new
    order of samples at its first sample, so that data is used again; false: refuse to resume."""

    @property
    def datasets(self) -> list[tuple[str, float]]:
        """(path, weight) of each dataset."""
        if self.path is not None:
            return [(self.path, 1.0)]
        return [(part.path, part.weight) for part in self.blend]

    @property
    def title(self) -> str:
        """The data in a few words."""
        return self.path or " + ".join(part.path for part in self.blend)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is None and not self.blend:
            hint = "for example path: data/corpus"
            refuse([Problem(("path",), "is required: the data is neither a path nor a blend", hint)])
        if self.path is not None and self.blend:
            refuse([Problem(("blend",), "is given beside path, expected one of them")])
        if self.blend and self.prepare_from:
            hint = "prepare each dataset with `megascale data prepare`"
            refuse([Problem(("prepareFrom",), "makes one dataset, but data is a blend of several", hint)])
        return self
