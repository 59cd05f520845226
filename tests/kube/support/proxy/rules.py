"""Fault rules: which fault, for which requests, and how often."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Json = dict[str, Any]
ACTIONS = frozenset(("answer", "expire", "hang", "cut", "lose", "delay"))


@dataclass
class Rule:
    """One fault. Patterns are searched in client, method and path with query; `times` 0 = until removed.

    `answer`: respond `code` (with Retry-After) without forwarding. `expire`: a watch responds 410.
    `hang`: no data, on open watches either, until the rule is removed. `cut`: drop the connection
    after `lines` lines of the response. `lose`: forward, drop the response. `delay`: wait `seconds` first.
    """

    action: str
    client: str = ""
    method: str = ""
    path: str = ""
    times: int = 0
    code: int = 500
    retry_after: int = 0
    lines: int = 0
    seconds: float = 0.0
    hits: int = 0
    lifted: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action: {self.action!r} is not one of {sorted(ACTIONS)}")

    def matches(self, client: str, method: str, path: str) -> bool:
        pairs = ((self.client, client), (self.method, method), (self.path, path))
        return all(re.search(pattern, text) for pattern, text in pairs)


class Rules:
    """The active rules, oldest first."""

    def __init__(self) -> None:
        self._rules: dict[int, Rule] = {}
        self._ids: Iterator[int] = count(1)

    def add(self, rule: Rule) -> int:
        number = next(self._ids)
        self._rules[number] = rule
        return number

    def remove(self, number: int) -> None:
        rule = self._rules.pop(number, None)
        if rule:
            rule.lifted.set()

    def clear(self) -> None:
        for number in list(self._rules):
            self.remove(number)

    def hits(self) -> dict[int, int]:
        return {number: rule.hits for number, rule in self._rules.items()}

    def take(self, client: str, method: str, path: str) -> Rule | None:
        """Return the first rule that matches a request, and count the match."""
        for number, rule in list(self._rules.items()):
            if rule.matches(client, method, path):
                rule.hits += 1
                if rule.times and rule.hits >= rule.times:
                    del self._rules[number]
                return rule
        return None

    async def gate(self, client: str, method: str, path: str) -> None:
        """Wait while a `hang` rule matches."""
        while True:
            found = [
                one
                for one in self._rules.values()
                if one.action == "hang" and one.matches(client, method, path)
            ]
            if not found:
                return
            await found[0].lifted.wait()


def status(code: int, retry_after: int = 0) -> Json:
    """Return the metav1.Status of a fault with that code."""
    reasons = {
        409: "Conflict",
        410: "Expired",
        429: "TooManyRequests",
        500: "InternalError",
        503: "ServiceUnavailable",
    }
    body: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code}
    body |= {"reason": reasons.get(code, "Unknown"), "message": f"injected fault {code}"}
    return body | ({"details": {"retryAfterSeconds": retry_after}} if retry_after else {})
