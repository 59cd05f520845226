"""Conversion of Kubernetes quantities to numbers."""

from __future__ import annotations

from functools import lru_cache

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
}


@lru_cache(maxsize=4096)
def number(quantity: str | int | float) -> float:
    """`100m` is 0.1, `1Gi` is 2**30."""
    text = str(quantity)
    if text[-2:] in _BINARY:
        return float(text[:-2]) * _BINARY[text[-2:]]
    if text[-1] in _DECIMAL and not text[-1].isdigit():
        return float(text[:-1]) * _DECIMAL[text[-1]]
    return float(text)


def requests(spec: dict[str, object]) -> dict[str, float]:
    """Return a pod's resource requests: the sum of its containers, or the largest init container."""
    total: dict[str, float] = {"pods": 1.0}
    for container in spec.get("containers", ()):  # type: ignore[attr-defined]
        for name, value in container.get("resources", {}).get("requests", {}).items():
            total[name] = total.get(name, 0.0) + number(value)
    for container in spec.get("initContainers", ()):  # type: ignore[attr-defined]
        for name, value in container.get("resources", {}).get("requests", {}).items():
            total[name] = max(total.get(name, 0.0), number(value))
    return total
