"""The audit log: one JSON line per request, for tests to read."""

from __future__ import annotations

import json
import time
from pathlib import Path

from apiserver.authn import User
from apiserver.rbac import Attributes


class Audit:
    """Appends to a file; each line is written before the response is sent."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, user: User | None, want: Attributes, code: int, user_agent: str, version: str) -> None:
        """`version` is the resourceVersion that a write produced, or empty."""
        line = {
            "time": round(time.time(), 4),
            "user": user.name if user else "",
            "pod": (user.extra.get("authentication.kubernetes.io/pod-name") or [""])[0] if user else "",
            "credential": (user.extra.get("authentication.kubernetes.io/credential-id") or [""])[0]
            if user
            else "",
            "agent": user_agent,
            "verb": want.verb,
            "group": want.group,
            "resource": want.full_resource or want.path,
            "namespace": want.namespace,
            "name": want.name,
            "code": code,
            "version": version,
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()
