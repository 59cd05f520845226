"""Which fields may be changed through an object's main endpoint and through its status."""

from __future__ import annotations

from apiserver.errors import Json
from apiserver.resources import Resource


def reset(config: Json, resource: Resource, subresource: str) -> None:
    """Remove the fields that an apply through this endpoint cannot set."""
    if subresource == "status":
        for name in [one for one in config if one not in {"status", "metadata", "apiVersion", "kind"}]:
            del config[name]
        config["metadata"] = {
            key: value
            for key, value in config["metadata"].items()
            if key in {"name", "namespace", "uid", "resourceVersion"}
        }
    elif "status" in resource.subresources:
        config.pop("status", None)


def separated(resource: Resource, old: Json, new: Json, subresource: str) -> Json:
    """Return `new` with the fields reset that this endpoint may not change."""
    if subresource == "status":
        meta = old["metadata"] | {"managedFields": new["metadata"].get("managedFields")}
        if meta["managedFields"] is None:
            del meta["managedFields"]
        if not resource.is_custom:
            meta |= {key: new["metadata"][key] for key in ("labels", "annotations") if key in new["metadata"]}
        kept = {name: value for name, value in old.items() if name != "status"} | {"metadata": dict(meta)}
        return kept | ({"status": new["status"]} if "status" in new else {})
    if "status" in resource.subresources:
        kept = {name: value for name, value in new.items() if name != "status"} | {
            "metadata": dict(new["metadata"])
        }
        return kept | ({"status": old["status"]} if "status" in old else {})
    return new | {"metadata": dict(new["metadata"])}


def spec_of(obj: Json) -> Json:
    return {
        name: value for name, value in obj.items() if name not in {"metadata", "status", "apiVersion", "kind"}
    }


def content_of(obj: Json) -> Json:
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return obj | {"metadata": meta}
