"""metadata.managedFields: which manager owns which fields of an object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from apiserver.errors import Json
from apiserver.fieldsets import Path, from_fields, to_fields


@dataclass(frozen=True)
class Manager:
    """A field manager: the key of one entry."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""


Owned = dict[Manager, frozenset[Path]]


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Managed:
    """Ownership read from an object, with its entries. Must not be modified."""

    owned: Owned
    entries: dict[Manager, Json]

    @classmethod
    def read(cls, obj: Json) -> Managed:
        owned: Owned = {}
        entries: dict[Manager, Json] = {}
        for entry in obj.get("metadata", {}).get("managedFields", ()):
            name, version = entry.get("manager", ""), entry.get("apiVersion", "")
            key = Manager(name, entry["operation"], version, entry.get("subresource", ""))
            owned[key] = from_fields(entry.get("fieldsV1", {}))
            entries[key] = entry
        return cls(owned, entries)

    def write(self, obj: Json, owned: Owned) -> None:
        """Write changed ownership into an object; unchanged entries are kept as they are."""
        entries = [
            self.entries[key] if self.owned.get(key) == paths else _entry(key, paths)
            for key, paths in owned.items()
            if paths
        ]
        obj["metadata"].pop("managedFields", None)
        if entries:
            obj["metadata"]["managedFields"] = entries


NOBODY = Managed({}, {})


def _entry(key: Manager, paths: frozenset[Path]) -> Json:
    entry: Json = {"manager": key.name, "operation": key.operation, "apiVersion": key.api_version}
    entry |= {"time": now_text(), "fieldsType": "FieldsV1", "fieldsV1": to_fields(paths)}
    return entry | ({"subresource": key.subresource} if key.subresource else {})
