"""Runs kubectl, which has the user's permissions, contexts and credential plug-ins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.errors import MegascaleError, UnreachableError

_TIMEOUT_S: Final = 120.0
_UNREACHABLE: Final = (
    "was refused",
    "Unable to connect",
    "no such host",
    "i/o timeout",
    "no configuration has been",
)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl for one cluster; None = kubectl's default kubeconfig or context."""

    kubeconfig: Path | None = None
    context: str | None = None

    def run(self, *arguments: str, stdin: str | None = None, timeout_s: float = _TIMEOUT_S) -> str:
        """Run `kubectl ARGUMENTS`; return its standard output.

        Raises:
            UnreachableError: kubectl is not installed, or the cluster does not respond.
            MegascaleError: kubectl failed; the message has its error output.
        """
        command = ["kubectl", *self._cluster(), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except FileNotFoundError as error:
            raise UnreachableError("kubectl is not installed; expected it on PATH") from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"kubectl {arguments[0]} did not finish within {timeout_s:g} s") from error
        if done.returncode:
            output = done.stderr.strip() or done.stdout.strip()
            kind = UnreachableError if any(text in output for text in _UNREACHABLE) else MegascaleError
            raise kind(f"kubectl {' '.join(arguments[:3])}: {output}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON of `kubectl get ARGUMENTS`, {} if the object does not exist."""
        text = self.run("get", *arguments, "--ignore-not-found", "--output=json")
        obj: dict[str, Any] = json.loads(text) if text.strip() else {}
        return obj

    def items(self, *arguments: str) -> Sequence[dict[str, Any]]:
        """Return the items of `kubectl get ARGUMENTS`; none if the cluster lacks the resource type."""
        try:
            items: list[dict[str, Any]] = self.get(*arguments).get("items", [])
        except UnreachableError:
            raise
        except MegascaleError as error:
            if "the server doesn't have a resource type" in str(error):
                return []
            raise
        return items

    def _cluster(self) -> list[str]:
        options = [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        return options + ([f"--context={self.context}"] if self.context else [])
