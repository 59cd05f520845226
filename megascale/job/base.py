"""Building blocks of the manifest's sections: their base class, bounded types, and problems across fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

PROBLEMS: Final = "problems"
MAX_INT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Words:
    """Annotation that words the bound or default of a field where its type does not say it.

    Attributes:
        expected: what is allowed, after "expected ".
        default: the default when it depends on other fields.
    """

    expected: str | None = None
    default: str | None = None


class Section(BaseModel):
    """A section of the manifest: camelCase in files, frozen, no unknown fields, no silent conversions."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


_SAME_AS: Final = {
    **dict.fromkeys(("heads", "numheads", "nhead", "nheads", "numattentionheads"), "attentionHeads"),
    **dict.fromkeys(("layers", "nlayer", "nlayers", "depth"), "numLayers"),
    **dict.fromkeys(("dmodel", "nembd", "width", "hidden"), "hiddenSize"),
    **dict.fromkeys(("seqlen", "seqlength", "contextlength"), "sequenceLength"),
    **dict.fromkeys(("batchsize", "globalbatchsize"), "globalBatch"),
    **dict.fromkeys(("microbatchsize",), "microBatch"),
    "tp": "tensor",
    "pp": "pipeline",
    "cp": "context",
}
"""Plain names by which other programs know fields whose own name is not near."""
Count = Annotated[int, Field(ge=1, le=MAX_INT)]
Natural = Annotated[int, Field(ge=0, le=MAX_INT)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]
MAX_TEXT: Final = 4096
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
CheckpointUri = Annotated[
    str,
    Field(
        # a file URI, or text without a scheme of two or more characters in front (RE2 has no lookahead)
        pattern=r"^([Ff][Ii][Ll][Ee]:(//([Ll]ocalhost)?/.*|/([^/].*)?)"
        r"|[^A-Za-z].*|[A-Za-z]:.*|[A-Za-z][A-Za-z0-9+.-]*([^A-Za-z0-9+.:-].*)?)$",
        min_length=1,
        max_length=MAX_TEXT,
    ),
    Words(
        "a path or file:///path on a file system with hard links that all nodes share "
        "(not an object store such as s3://, gs:// or abfs://)"
    ),
]
MAX_JOB_NAME: Final = 49
"""63, what a label's value or a host name may have, less -<slot>-<incarnation> of six digits each."""
JobName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_JOB_NAME),
    Words(f"1 to {MAX_JOB_NAME} lower-case letters, digits and hyphens, first and last a letter or digit"),
]
Label = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63),
    Words("1 to 63 lower-case letters, digits and hyphens, first and last a letter or digit"),
]
LabelKey = Annotated[
    str,
    Field(
        pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=317,
    ),
    Words("the key of a label, such as topology.kubernetes.io/zone"),
]
LabelValue = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63),
    Words("the value of a label: up to 63 letters, digits, hyphens, dots and underscores"),
]
NodeName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253),
    Words("a node name such as node-0: lower-case letters, digits, hyphens and dots"),
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Values that are valid one by one but not together.

    Attributes:
        path: the field to change, camelCase, relative to the section that is checked.
        message: the values, and what must hold.
        hint: what to do.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str | None = None


def refuse(problems: Sequence[Problem]) -> None:
    """Fail the validation of a section with all of `problems`; does nothing without any."""
    if problems:
        context: dict[str, Any] = {
            PROBLEMS: list(problems),
            "text": "; ".join(
                f"{'.'.join(map(str, problem.path))}: {problem.message}" for problem in problems
            ),
        }
        raise PydanticCustomError(PROBLEMS, "{text}", context)


def repeated(field: str, key: str, values: Sequence[str]) -> list[Problem]:
    """A problem for every entry of the list `field` that was there before; `key` tells entries apart."""
    return [
        Problem((field, index), f"{key} {value} is given twice", "remove one of them")
        for index, value in enumerate(values)
        if value in values[:index]
    ]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most likely stands for; case, `_` and `-` do not count."""
    plain = {_plain(candidate): candidate for candidate in candidates}
    meant = _plain(_SAME_AS.get(_plain(name), ""))
    if meant in plain:
        return plain[meant]
    close = difflib.get_close_matches(_plain(name), plain, 1, cutoff=0.7)
    return plain[close[0]] if close else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A hint at the nearest candidate."""
    meant = nearest(name, candidates)
    return f"did you mean {meant}?" if meant else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
