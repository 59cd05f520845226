"""Volumes of a pod as folders, updated atomically as by a kubelet."""

from __future__ import annotations

import base64
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Json = dict[str, Any]
_REFRESH_SHARE = 0.8


class Missing(Exception):  # noqa: N818 - a state to wait in, not a failure
    """An object that a volume needs does not exist yet."""


class Source(Protocol):
    """Provides the content of volumes."""

    async def config_map(self, namespace: str, name: str) -> Json | None: ...

    async def secret(self, namespace: str, name: str) -> Json | None: ...

    async def token(self, pod: Json, audience: str, life_s: int) -> str: ...


@dataclass
class Volumes:
    """The volumes of one pod under `folder`; memory ones under `memory_folder` (a tmpfs)."""

    pod: Json
    folder: Path
    memory_folder: Path
    source: Source
    _refresh_at: dict[str, float] = field(default_factory=dict)
    _tokens: dict[tuple[str, str], str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the folder of a volume, for a hostPath volume the host's path."""
        volume = next(one for one in self.pod["spec"]["volumes"] if one["name"] == name)
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            return self.memory_folder / name
        return self.folder / name

    async def prepare(self) -> None:
        """Create all volumes. Raises: Missing."""
        for volume in self.pod["spec"].get("volumes", ()):
            await self._prepare(volume)

    async def _prepare(self, volume: Json) -> None:
        path = self.path(volume["name"])
        if "hostPath" in volume:
            if volume["hostPath"].get("type") in {"DirectoryOrCreate", "FileOrCreate"}:
                path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                raise Missing(f'hostPath "{path}" does not exist')
            return
        path.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            path.chmod(0o777)
        else:
            write_atomically(path, await self._content(volume))

    async def refresh(self, config_map: str = "") -> None:
        """Rewrite volumes with a changed ConfigMap or a token due for renewal."""
        for volume in self.pod["spec"].get("volumes", ()):
            due = self._refresh_at.get(volume["name"], float("inf")) <= time.monotonic()
            if due or (config_map and config_map in _config_maps(volume)):
                try:
                    write_atomically(self.path(volume["name"]), await self._content(volume))
                except Missing:
                    continue

    def next_refresh(self) -> float:
        """Return the monotonic time at which the next token is due for renewal."""
        return min(self._refresh_at.values(), default=float("inf"))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.memory_folder, ignore_errors=True)

    async def _content(self, volume: Json) -> dict[str, bytes]:
        if "configMap" in volume:
            return await self._config_map(volume["configMap"])
        if "secret" in volume:
            spec = volume["secret"]
            return await self._secret(spec | {"name": spec["secretName"]})
        if "downwardAPI" in volume:
            return self._downward(volume["downwardAPI"])
        if "projected" not in volume:
            raise Missing(f"volume {volume['name']} is of a kind that this kubelet does not know")
        content: dict[str, bytes] = {}
        for source in volume["projected"].get("sources", ()):
            content |= await self._projected(volume["name"], source)
        return content

    async def _projected(self, volume: str, source: Json) -> dict[str, bytes]:
        if "configMap" in source:
            return await self._config_map(source["configMap"])
        if "secret" in source:
            return await self._secret(source["secret"])
        if "downwardAPI" in source:
            return self._downward(source["downwardAPI"])
        return await self._token(volume, source["serviceAccountToken"])

    async def _token(self, volume: str, spec: Json) -> dict[str, bytes]:
        life_s = int(spec.get("expirationSeconds", 3600))
        key = (volume, spec["path"])
        if key not in self._tokens or self._refresh_at.get(volume, 0.0) <= time.monotonic():
            self._tokens[key] = await self.source.token(self.pod, spec.get("audience", ""), life_s)
            self._refresh_at[volume] = time.monotonic() + _REFRESH_SHARE * life_s
        return {spec["path"]: self._tokens[key].encode()}

    async def _config_map(self, spec: Json) -> dict[str, bytes]:
        found = await self.source.config_map(self.pod["metadata"]["namespace"], spec["name"])
        if found is None and not spec.get("optional"):
            raise Missing(f'configmap "{spec["name"]}" not found')
        data = {name: text.encode() for name, text in ((found or {}).get("data") or {}).items()}
        data |= {name: base64.b64decode(raw) for name, raw in ((found or {}).get("binaryData") or {}).items()}
        return _selected(data, spec, f'configmap "{spec["name"]}"')

    async def _secret(self, spec: Json) -> dict[str, bytes]:
        found = await self.source.secret(self.pod["metadata"]["namespace"], spec["name"])
        if found is None and not spec.get("optional"):
            raise Missing(f'secret "{spec["name"]}" not found')
        data = {name: base64.b64decode(raw) for name, raw in ((found or {}).get("data") or {}).items()}
        return _selected(data, spec, f'secret "{spec["name"]}"')

    def _downward(self, spec: Json) -> dict[str, bytes]:
        return {
            one["path"]: field_value(self.pod, one["fieldRef"]["fieldPath"]).encode()
            for one in spec.get("items", ())
        }


def _selected(data: dict[str, bytes], spec: Json, what: str) -> dict[str, bytes]:
    items = spec.get("items")
    if not items:
        return data
    for item in items:
        if item["key"] not in data and not spec.get("optional"):
            raise Missing(f"{what} has no key {item['key']}")
    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}


def _config_maps(volume: Json) -> set[str]:
    sources = [volume, *volume.get("projected", {}).get("sources", ())]
    return {one["configMap"]["name"] for one in sources if "configMap" in one}


def field_value(pod: Json, path: str) -> str:
    """Return the value of a downward API field, such as `metadata.labels['a']` or `status.podIP`."""
    meta, status = pod["metadata"], pod.get("status", {})
    for kind in ("labels", "annotations"):
        prefix = f"metadata.{kind}"
        if path == prefix:
            return "\n".join(
                f"{key}={json.dumps(value)}" for key, value in sorted(meta.get(kind, {}).items())
            )
        if path.startswith(prefix + "["):
            return str(meta.get(kind, {}).get(path[len(prefix) + 2 : -2], ""))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
    }
    if path not in known:
        raise Missing(f"unsupported fieldPath: {path}")
    return str(known[path])


def write_atomically(folder: Path, content: dict[str, bytes]) -> None:
    """Write files behind a `..data` link that is replaced atomically, so that readers see one version."""
    link = folder / "..data"
    old = folder / link.readlink() if link.is_symlink() else None
    if old and _holds(old, content):
        return
    fresh = folder / f"..{time.time_ns()}"
    for name, raw in content.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    fresh.mkdir(exist_ok=True)
    switch = folder / "..data_tmp"
    switch.symlink_to(fresh.name)
    switch.rename(link)
    tops = {name.split("/")[0] for name in content}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old:
        shutil.rmtree(old)


def _holds(folder: Path, content: dict[str, bytes]) -> bool:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files == content
