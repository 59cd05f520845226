"""Command, arguments and environment of a container, resolved as by a kubelet."""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import Any

from programs import python_path

from kubelet.volumes import Missing, Source, field_value

Json = dict[str, Any]
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_UNITS = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "": 1.0,
}


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace `$(NAME)` by the variable's value; unknown variables stay, `$$` becomes `$`."""

    def replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def command(container: Json, variables: dict[str, str]) -> list[str]:
    """Return the command line. Raises: Missing if the pod has no command."""
    given = container.get("command")
    if not given:
        raise Missing(f"container {container['name']} has no command, and images are ignored here")
    words = [expand(one, variables) for one in (*given, *container.get("args", ()))]
    if Path(words[0]).name in {"python", "python3"}:
        words[0] = sys.executable
    return words


async def environment(pod: Json, container: Json, source: Source, api: tuple[str, int]) -> dict[str, str]:
    """Return the system's variables, the API server's address, then the pod's own. Raises: Missing."""
    variables = {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        ),
        "HOME": "/tmp",
        "HOSTNAME": pod["metadata"]["name"],
        "LANG": "C.UTF-8",
        "PYTHONPATH": python_path(),
        "KUBERNETES_SERVICE_HOST": api[0],
        "KUBERNETES_SERVICE_PORT": str(api[1]),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(api[1]),
    }
    namespace = pod["metadata"]["namespace"]
    for one in container.get("envFrom", ()):
        data = await _all_of(namespace, one, source)
        variables |= {one.get("prefix", "") + name: value for name, value in data.items()}
    for one in container.get("env", ()):
        value = await _value(pod, container, one, source)
        if value is not None:
            variables[one["name"]] = expand(value, variables)
    return variables


async def _all_of(namespace: str, one: Json, source: Source) -> dict[str, str]:
    if "configMapRef" in one:
        found = await source.config_map(namespace, one["configMapRef"]["name"])
        return dict((found or {}).get("data") or {})
    found = await source.secret(namespace, one["secretRef"]["name"])
    data = (found or {}).get("data") or {}
    return {name: base64.b64decode(raw).decode() for name, raw in data.items()}


async def _value(pod: Json, container: Json, one: Json, source: Source) -> str | None:
    if "valueFrom" not in one:
        return str(one.get("value", ""))
    origin = one["valueFrom"]
    if "fieldRef" in origin:
        return field_value(pod, origin["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in origin:
        return _resource(container, origin["resourceFieldRef"])
    secret = "secretKeyRef" in origin
    ref = origin["secretKeyRef" if secret else "configMapKeyRef"]
    namespace = pod["metadata"]["namespace"]
    found = await (source.secret if secret else source.config_map)(namespace, ref["name"])
    raw = ((found or {}).get("data") or {}).get(ref["key"])
    if raw is None:
        if ref.get("optional"):
            return None
        raise Missing(f"{'secret' if secret else 'configmap'} {ref['name']} has no key {ref['key']}")
    return base64.b64decode(raw).decode() if secret else str(raw)


def _resource(container: Json, ref: Json) -> str:
    section, _, name = ref["resource"].partition(".")
    value = container.get("resources", {}).get(section, {}).get(name, "0")
    return str(-(-_number(value) // _number(ref.get("divisor") or "1")).__int__())


def _number(quantity: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if not found or found[2] not in _UNITS:
        raise Missing(f"unknown quantity: {quantity}")
    return float(found[1]) * _UNITS[found[2]]
