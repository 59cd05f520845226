"""What the generator makes of pydantic's constructs, and what it refuses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from megascale_operator.crd.structural import InexpressibleError, structural
from pydantic import Field
from schema.compiled import CompiledSchema
from schema.structure import faults

from megascale.job.base import Count, Label, Section


class Inner(Section):
    """Something inside."""

    label: Label = "a"
    """A label."""


class Folder(Section):
    """In a folder."""

    kind: Literal["folder"]
    """Which."""
    path: Label
    """Where."""


class Bucket(Section):
    """In a bucket."""

    kind: Literal["bucket"]
    """Which."""
    url: Label
    """Where."""
    region: Label | None = None
    """Where exactly."""


class Many(Section):
    """Constructs that a CRD can express."""

    inner: Inner = Inner()
    """Defaults to a section."""
    maybe: Inner | None = None
    """May be left out."""
    either: Annotated[int, Field(ge=0, le=9)] | Literal["auto"] = "auto"
    """A number or a word."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Between two bounds."""
    store: Annotated[Folder | Bucket, Field(discriminator="kind")]
    """One of two."""
    anything: dict[str, Any] = Field(default_factory=dict)
    """Passed through."""


def generated(model: type[Section]) -> dict[str, Any]:
    schema = structural(model, {}, "")
    assert faults(schema) == []
    return schema


def test_constructs() -> None:
    fields = generated(Many)["properties"]
    assert fields["inner"]["default"] == {"label": "a"}
    assert fields["maybe"]["type"] == "object"
    assert "default" not in fields["maybe"]
    assert fields["either"] == {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "minimum": 0,
        "maximum": 9,
        "pattern": "^(auto)$",
        "default": "auto",
        "description": "A number or a word.",
    }
    assert (fields["ratio"]["exclusiveMinimum"], fields["ratio"]["exclusiveMaximum"]) == (True, True)
    assert fields["anything"]["x-kubernetes-preserve-unknown-fields"] is True
    assert generated(Many)["required"] == ["store"]


@pytest.mark.parametrize(
    ("store", "valid"),
    [
        ({"kind": "folder", "path": "a"}, True),
        ({"kind": "bucket", "url": "a", "region": "b"}, True),
        ({"kind": "folder", "url": "a"}, False),
        ({"kind": "folder", "path": "a", "region": "b"}, False),
        ({"kind": "tape", "path": "a"}, False),
        ({"path": "a"}, False),
    ],
)
def test_variants(store: dict[str, Any], valid: bool) -> None:
    compiled = CompiledSchema(generated(Many))
    assert (compiled.validate({"store": store}) == []) is valid


def model_of(annotation: Any) -> type[Section]:
    return type("Odd", (Section,), {"__annotations__": {"field": annotation}, "__module__": __name__})


class Loop(Section):
    """Contains itself."""

    loop: Loop | None = None
    """Again."""


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (int, "a integer needs a bound"),
        (str, "a string needs a bound"),
        (list[Count], "a array needs a bound"),
        (dict[str, Count], "a object needs a bound"),
        (Count | bool, "no union of boolean and integer"),
        (Inner | Folder, "no union of object and object"),
        (Annotated[Count, Field(multiple_of=2)], "no multipleOf"),
        (tuple[Count, Count], "no prefixItems"),
        (Loop, "Loop contains itself"),
    ],
)
def test_what_has_no_counterpart_is_refused(annotation: Any, message: str) -> None:
    with pytest.raises(InexpressibleError, match=f"field.*: .*{message}"):
        structural(model_of(annotation), {}, "")
