"""A small client for tests: JSON over HTTPS to the API server of a kubeconfig."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - a Status, not an error of the test
    """The API server responded with an error."""

    def __init__(self, code: int, status: Json) -> None:
        super().__init__(f"{code}: {status.get('message')}")
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Cluster:
    """Address and credentials of an API server."""

    url: str
    ca_pem: str
    token: str = ""
    certificate: tuple[str, str] | None = None

    @classmethod
    def of(cls, kubeconfig: Path) -> Cluster:
        """Return the current context of a kubeconfig."""
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        ca = _content(cluster, "certificate-authority", kubeconfig)
        pair = None
        if "client-certificate" in user or "client-certificate-data" in user:
            pair = (
                _content(user, "client-certificate", kubeconfig),
                _content(user, "client-key", kubeconfig),
            )
        return cls(cluster["server"], ca, user.get("token", ""), pair)


def _named(entries: list[Json], name: str) -> Json:
    return next(one for one in entries if one["name"] == name)


def _content(holder: Json, key: str, kubeconfig: Path) -> str:
    if f"{key}-data" in holder:
        return base64.b64decode(str(holder[f"{key}-data"])).decode()
    return (kubeconfig.parent / str(holder[key])).read_text()


@dataclass
class Rest:
    """Requests of one user. Request and response bodies are JSON."""

    cluster: Cluster
    agent: str = "tests"
    timeout_s: float = 20.0
    _pool: urllib3.PoolManager = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cadata=self.cluster.ca_pem)
        if self.cluster.certificate:
            _load_pair(context, self.cluster.certificate)
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, maxsize=8)

    def request(
        self, method: str, path: str, body: Any = None, *, media: str = "application/json", **query: Any
    ) -> Json:
        """Send a request; return the response's JSON. Raises: Refused."""
        response = self._send(method, path, body, media, query, stream=False)
        answer: Json = (
            json.loads(response.data) if response.data[:1] in b"{[" else {"text": response.data.decode()}
        )
        if response.status >= 400:
            raise Refused(response.status, answer)
        return answer

    def _send(
        self, method: str, path: str, body: Any, media: str, query: Json, *, stream: bool
    ) -> urllib3.BaseHTTPResponse:
        text = urlencode(
            {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
        )
        headers = {"User-Agent": self.agent, "Accept": "application/json, */*", "Content-Type": media}
        if self.cluster.token:
            headers["Authorization"] = f"Bearer {self.cluster.token}"
        url = self.cluster.url + path + (f"?{text}" if text else "")
        raw = None if body is None else json.dumps(body).encode()
        return self._pool.request(
            method, url, body=raw, headers=headers, timeout=self.timeout_s, preload_content=not stream
        )

    def get(self, path: str, **query: Any) -> Json:
        return self.request("GET", path, **query)

    def create(self, path: str, body: Json, **query: Any) -> Json:
        return self.request("POST", path, body, **query)

    def update(self, path: str, body: Json, **query: Any) -> Json:
        return self.request("PUT", path, body, **query)

    def merge(self, path: str, body: Json, **query: Any) -> Json:
        return self.request("PATCH", path, body, media="application/merge-patch+json", **query)

    def apply(self, path: str, body: Json, manager: str, **query: Any) -> Json:
        return self.request(
            "PATCH", path, body, media="application/apply-patch+yaml", fieldManager=manager, **query
        )

    def json_patch(self, path: str, body: list[Json], **query: Any) -> Json:
        return self.request("PATCH", path, body, media="application/json-patch+json", **query)

    def delete(self, path: str, body: Json | None = None, **query: Any) -> Json:
        return self.request("DELETE", path, body, **query)

    @contextmanager
    def watch(self, path: str, **query: Any) -> Iterator[Iterator[Json]]:
        """Yield the events of a watch; each read blocks at most `timeout_s` seconds."""
        response = self._send("GET", path, None, "application/json", query | {"watch": True}, stream=True)
        if response.status >= 400:
            raise Refused(response.status, json.loads(response.read()))
        try:
            yield _lines(response)
        finally:
            response.close()


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[Json]:
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _load_pair(context: ssl.SSLContext, pair: tuple[str, str]) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pair[1] + "\n" + pair[0])
        file.flush()
        context.load_cert_chain(file.name)
