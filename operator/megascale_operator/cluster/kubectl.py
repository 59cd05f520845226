"""kubectl as a process: it has the user's rights, contexts and plug-ins for logging in."""

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
    """Which cluster; None = kubectl's own choice."""

    kubeconfig: Path | None = None
    context: str | None = None

    def run(self, *arguments: str, stdin: str | None = None, timeout_s: float = _TIMEOUT_S) -> str:
        """What `kubectl ARGUMENTS` prints.

        Raises:
            UnreachableError: there is no kubectl, or the cluster does not answer.
            MegascaleError: kubectl refused.
        """
        command = ["kubectl", *self._cluster(), *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except FileNotFoundError as error:
            raise UnreachableError("kubectl is not installed; expected it on PATH") from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"kubectl {arguments[0]} has no answer after {timeout_s:g} s") from error
        if done.returncode:
            stated = done.stderr.strip() or done.stdout.strip()
            kind = UnreachableError if any(word in stated for word in _UNREACHABLE) else MegascaleError
            raise kind(f"kubectl {' '.join(arguments[:3])}: {stated}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ARGUMENTS` as JSON; an empty mapping when the object is not there."""
        text = self.run("get", *arguments, "--ignore-not-found", "--output=json")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def items(self, *arguments: str) -> Sequence[dict[str, Any]]:
        """Entries of a list; none when the cluster does not know the kind."""
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
