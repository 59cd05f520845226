"""Small objects and helpers for tests of the double."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from rest import Refused

Json = dict[str, Any]
T = TypeVar("T")


def fresh(prefix: str = "x") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def config_map(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, **spec: Any) -> Json:
    container = {"name": "main", "image": "none:1", "command": ["true"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]} | spec,
    }


def refusal(call: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def eventually(look: Callable[[], T | None], timeout_s: float = 10.0) -> T:
    """Poll `look` until it returns something; return it."""
    end = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < end, f"nothing within {timeout_s:g} s"
        time.sleep(0.02)
    return found
