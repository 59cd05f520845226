"""Custom resources: serves the resources of CRD objects with schema, defaults and CEL rules."""

from __future__ import annotations

from apiserver.admission import Admission
from apiserver.bootstrap import SYSTEM
from apiserver.customtypes import SchemaType
from apiserver.errors import Json
from apiserver.managed import now_text
from apiserver.pods import set_condition
from apiserver.resources import CRDS, Registry, Resource
from apiserver.store import Event, Store
from apiserver.target import Options, Target
from apiserver.typed import copy
from apiserver.writes import Writer

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


class CustomResources:
    """Serves what CRDs in the store declare, and marks them Established."""

    def __init__(self, store: Store, registry: Registry, admission: Admission, writer: Writer) -> None:
        self._store = store
        self._registry = registry
        self._admission = admission
        self._leaving: set[str] = set()
        self._writer = writer
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        if resource != CRDS:
            if event.type == "DELETED" and resource in self._leaving:
                self._finish(resource)
            return
        crd = event.after.obj
        spec = crd["spec"]
        if event.type == "DELETED":
            self._registry.drop(spec["group"], spec["names"]["plural"])
        elif crd["metadata"].get("deletionTimestamp"):
            if not (event.before and event.before.obj["metadata"].get("deletionTimestamp")):
                self._terminate(crd)
        elif event.before is None or event.before.obj["spec"] != spec:
            for version in spec["versions"]:
                if version.get("served"):
                    self._serve(spec, version)
            self._establish(crd)

    def _serve(self, spec: Json, version: Json) -> None:
        names, schema = spec["names"], version["schema"]["openAPIV3Schema"]
        resource = Resource(
            spec["group"],
            version["name"],
            names["kind"],
            names["plural"],
            names.get("singular") or names["kind"].lower(),
            spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            subresources=tuple(version.get("subresources", {})),
            columns=list(version.get("additionalPrinterColumns", ())),
            schema=schema,
        )
        self._admission.custom_types[resource.key] = SchemaType(schema)
        self._registry.add(resource)

    def _terminate(self, crd: Json) -> None:
        """Delete every instance; the CRD is removed after the last one."""
        key = crd["metadata"]["name"]
        resource = self._registry.by_key(key)
        self._leaving.add(key)
        for stored in self._store.values(key):
            meta = stored.obj["metadata"]
            if resource:
                self._writer.delete(
                    Target(resource, meta.get("namespace", ""), meta["name"]), {}, Options(SYSTEM)
                )
        self._finish(key)

    def _finish(self, key: str) -> None:
        stored = self._store.get(CRDS, "", key)
        if stored and not self._store.values(key):
            self._leaving.discard(key)
            last: Json = copy(stored.obj)
            rest = [one for one in last["metadata"].get("finalizers", ()) if one != CLEANUP]
            last["metadata"]["finalizers"] = rest
            if rest:
                self._store.put(CRDS, last)
            else:
                self._store.remove(CRDS, "", key, last)

    def _establish(self, crd: Json) -> None:
        obj: Json = copy(crd)
        if CLEANUP not in obj["metadata"].get("finalizers", ()):
            obj["metadata"]["finalizers"] = [*obj["metadata"].get("finalizers", ()), CLEANUP]
        names = dict(obj["spec"]["names"])
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
        time = now_text()
        obj["status"] = obj.get("status", {}) | {
            "acceptedNames": names,
            "storedVersions": [one["name"] for one in obj["spec"]["versions"] if one.get("storage")],
        }
        set_condition(obj, "NamesAccepted", "True", "NoConflicts", "no conflicts found", time)
        set_condition(
            obj, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted", time
        )
        self._store.put(CRDS, obj)
