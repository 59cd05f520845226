"""`megascale model`: sizes of the preset models and what a layout makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.cli.output import echo
from megascale.errors import InputError

if TYPE_CHECKING:
    from megascale.model.layout import Layout
    from megascale.model.shape import ModelShape

app = typer.Typer(no_args_is_help=True, help="Sizes of models and what a layout makes of them.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_SIZES: Final = {"tp": "tensor", "pp": "pipeline", "dp": "data", "vpp": "interleave"}
_GIB: Final = 2**30


@app.command("list", epilog="Example: megascale model list")
def list_presets(as_json: JsonFlag = False) -> None:
    """Print the preset models with their sizes."""
    from megascale.job.presets import PRESETS
    from megascale.model.inventory import active_parameter_count, parameter_count

    rows: list[dict[str, Any]] = []
    for name in PRESETS:
        shape = _shape(name)
        rows.append(
            {
                "preset": name,
                "parameters": parameter_count(shape),
                "activeParameters": active_parameter_count(shape),
                "numLayers": shape.num_layers,
                "hiddenSize": shape.hidden_size,
                "attentionHeads": shape.attention_heads,
                "block": shape.block,
                "experts": shape.experts,
            }
        )
    if as_json:
        echo(json.dumps(rows, indent=2))
        return
    echo(f"{'preset':10} {'parameters':>10} {'layers':>6} {'hidden':>6} {'heads':>5}  block")
    for row in rows:
        experts = f", {row['experts']} experts" if row["experts"] else ""
        sizes = f"{row['numLayers']:>6} {row['hiddenSize']:>6} {row['attentionHeads']:>5}"
        echo(f"{row['preset']:10} {_short(row['parameters']):>10} {sizes}  {row['block']}{experts}")


@app.command(
    epilog="Examples: megascale model show gpt-175b --layout tp=8,pp=8,dp=192,vpp=6,sp --global-batch 6144 | "
    "megascale model show tiny --json"
)
def show(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A name from `megascale model list`.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Ranks along tp (tensor), pp (pipeline), dp (data); vpp = chunks per pipeline rank; "
            "sp = sequence parallel."
        ),
    ] = "tp=1,pp=1,dp=1",
    *,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 2048,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences a GPU works on at once.")] = 1,
    global_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per step; default: four micro-batches per pipeline stage."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Sliding window, in place of the preset's.")
    ] = None,
    block: Annotated[str | None, typer.Option(help="parallel or serial in place of the preset's.")] = None,
    optimizer: Annotated[str, typer.Option(help="lamb, adamw or lion.")] = "lamb",
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs that share a node's links.")] = 8,
    as_json: JsonFlag = False,
) -> None:
    """Print parameters, memory per GPU, FLOPs, pipeline bubble and communication of a model under a layout.

    All figures are computed, none is measured; docs/model.md has the formulas.
    """
    from megascale.model.estimate import describe
    from megascale.model.memory import STATE_BYTES

    if optimizer not in STATE_BYTES:
        raise InputError(f"--optimizer is {optimizer}, expected one of {', '.join(STATE_BYTES)}")
    changes = {"window": window, "block": block}
    shape = _shape(preset, **{name: value for name, value in changes.items() if value is not None})
    cut = parse_layout(layout)
    _check(shape, cut, sequence_length)
    wave = micro_batch * cut.data
    batch = global_batch or 4 * cut.pipeline * wave
    if batch % wave:
        raise InputError(
            f"--global-batch is {batch}, expected a multiple of micro-batch {micro_batch} x dp {cut.data} "
            f"= {wave}"
        )
    document = {"preset": preset} | describe(
        shape,
        cut,
        sequence_length=sequence_length,
        micro_batch=micro_batch,
        global_batch=batch,
        optimizer=optimizer,
        gpus_per_node=gpus_per_node,
    )
    echo(json.dumps(document, indent=2) if as_json else _text(document))


def _shape(preset: str, **changes: Any) -> ModelShape:  # noqa: ANN401 - fields of a manifest's model
    from pydantic import ValidationError

    from megascale.job.megatron import Model
    from megascale.job.presets import PRESETS
    from megascale.model.shape import ModelShape

    if preset not in PRESETS:
        raise InputError(f"PRESET is {preset}, expected one of {', '.join(PRESETS)}")
    try:
        return ModelShape.of(Model.model_validate({"preset": preset, **changes}))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(f"--{wrong['loc'][0]} is {wrong['input']}: {wrong['msg']}") from None


def parse_layout(text: str) -> Layout:
    """The layout that "tp=8,pp=8,dp=192,vpp=6,sp" names; what is left out is 1.

    Raises:
        InputError: an unknown name or a size that is no whole number from 1 on.
    """
    from megascale.model.layout import Layout

    sizes: dict[str, int] = {}
    sequence = False
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if _SIZES.get(name) in sizes:
            raise InputError(f"--layout is {text}: names {name} twice")
        if name == "sp" and not value:
            sequence = True
        elif name in _SIZES and value.isdecimal() and int(value) >= 1:
            sizes[_SIZES[name]] = int(value)
        else:
            raise InputError(
                f'--layout has "{part}", expected tp=, pp=, dp= or vpp= with a number from 1 on, or sp, '
                "such as tp=8,pp=8,dp=192,sp"
            )
    return Layout(**{"tensor": 1, "pipeline": 1, "data": 1, **sizes}, sequence=sequence)


def _check(shape: ModelShape, layout: Layout, sequence_length: int) -> None:
    tensor, stages = layout.tensor, layout.pipeline * layout.interleave
    rules: list[tuple[int, int, str]] = [
        (shape.attention_heads, tensor, "tp does not divide attentionHeads"),
        (shape.kv_heads, tensor, "tp does not divide kvHeads"),
        (shape.ffn_hidden_size, tensor, "tp does not divide ffnHiddenSize"),
        (shape.num_layers, stages, "pp x vpp does not divide numLayers"),
        (sequence_length if layout.sequence else 0, tensor, "sp: tp does not divide the sequence length"),
    ]
    for value, by, message in rules:
        if value % by:
            raise InputError(f"--layout: {message}: {value} is not a multiple of {by}")
    if layout.interleave > 1 and layout.pipeline == 1:
        raise InputError("--layout: vpp needs pp: chunks per stage without stages")


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def _text(document: dict[str, Any]) -> str:
    memory, flops, bubble = (document[k] for k in ("memoryPerGpu", "flopsPerStep", "pipelineBubble"))
    active = document["activeParameters"]
    used = "" if active == document["parameters"] else f", {_short(active)} of them per token"
    fullest = f"pipeline stage {memory['stage']}, {_short(memory['parameters'])} parameters"
    kept, total = (_gib(memory[f"{name}Recomputed"]) for name in ("activations", "total"))
    batch = f"{document['tokensPerStep']:,} tokens a step, {document['microBatches']} micro-batches a GPU"
    idle = f"{bubble['idleOverWork']:.1%} of the working time, {bubble['idleOverStep']:.1%} of the step"
    lines = [
        f"{document['preset']}: {document['parameters']:,} parameters{used}",
        f"{document['gpus']:,} GPU{'s' * (document['gpus'] > 1)}, {batch}",
        "",
        f"memory per GPU (fullest: {fullest})",
        *(f"  {name:12} {_gib(memory[name]):>11}" for name in ("weights", "gradients", "optimizer")),
        f"  {'activations':12} {_gib(memory['activations']):>11}  (recompute: full: {kept})",
        f"  {'total':12} {_gib(memory['total']):>11}  (recompute: full: {total})",
        "",
        "FLOPs per step",
        f"  {'attended':12} {flops['windowAware']:>11.4g}  causal and inside the window; MFU here uses this",
        f"  {'causal':12} {flops['causal']:>11.4g}  without counting the window",
        f"  {'square':12} {flops['square']:>11.4g}  all pairs, as in Megatron-LM's figures",
        "",
        f"pipeline bubble {idle}",
        "",
        "sent per GPU and step" if document["communication"] else "nothing is sent: one GPU",
    ]
    for item in document["communication"]:
        size, link = _gib(item["bytesPerStep"]), item["link"]
        lines.append(f"  {size:>11}  {link:8} {item['dimension']}: {item['what']}")
    return "\n".join(lines)
