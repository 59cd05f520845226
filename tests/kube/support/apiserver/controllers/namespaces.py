"""Creates the default ServiceAccount and the CA ConfigMap in every namespace."""

from __future__ import annotations

from apiserver.bootstrap import SYSTEM
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.resources import Registry
from apiserver.store import Event, Store
from apiserver.target import Options, Target
from apiserver.writes import Writer


class Namespaces:
    """The serviceaccount and root-ca-cert-publisher controllers."""

    def __init__(self, store: Store, writer: Writer, registry: Registry, ca_pem: str) -> None:
        self._store = store
        self._writer = writer
        self._registry = registry
        self._ca_pem = ca_pem
        self._dirty: Dirty[str] = Dirty()
        for one in store.values("namespaces"):
            self._dirty.mark(one.obj["metadata"]["name"])
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        if resource == "namespaces" and event.type == "ADDED":
            self._dirty.mark(event.after.obj["metadata"]["name"])
        elif resource in {"serviceaccounts", "configmaps"} and event.type == "DELETED":
            self._dirty.mark(event.after.obj["metadata"]["namespace"])

    async def run(self) -> None:
        while True:
            for namespace in await self._dirty.take():
                if self._store.get("namespaces", "", namespace):
                    self._ensure("serviceaccounts", namespace, "default", {})
                    self._ensure(
                        "configmaps", namespace, "kube-root-ca.crt", {"data": {"ca.crt": self._ca_pem}}
                    )

    def _ensure(self, plural: str, namespace: str, name: str, rest: Json) -> None:
        resource = self._registry.find("", "v1", plural)
        if resource and self._store.get(plural, namespace, name) is None:
            target = Target(resource, namespace, name)
            self._writer.create(
                target, {"metadata": {"name": name}} | rest, Options(SYSTEM, "kube-controller-manager")
            )
