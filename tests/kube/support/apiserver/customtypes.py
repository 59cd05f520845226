"""Schema, defaults and CEL rules of a custom resource version."""

from __future__ import annotations

from schema import CompiledSchema

from apiserver.errors import Cause, Json
from apiserver.typed import Decoding, metadata_node


class SchemaType:
    """A compiled schema, with ObjectMeta for `metadata`. Raises: ValueError if the schema is invalid."""

    def __init__(self, schema: Json) -> None:
        self._schema = CompiledSchema(schema)

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        obj, unknown = self._schema.prune(body)
        decoding = Decoding()
        obj["metadata"] = decoding.prune(obj.get("metadata") or {}, metadata_node(), "metadata")
        return obj, unknown + decoding.unknown

    def default(self, obj: Json) -> Json:
        return self._schema.default(obj)

    def check(self, obj: Json, old: Json | None, /) -> list[Cause]:
        """Schema and CEL violations."""
        return [Cause(one.field, one.message, one.reason) for one in self._schema.validate(obj, old)]


def schemas(crd_spec: Json) -> dict[str, SchemaType]:
    """Return the type of each served version. Raises: ValueError naming the version."""
    found = {}
    for version in crd_spec["versions"]:
        if version.get("served"):
            try:
                found[version["name"]] = SchemaType(version["schema"]["openAPIV3Schema"])
            except ValueError as error:
                raise ValueError(f"{version['name']}: {error}") from error
    return found
