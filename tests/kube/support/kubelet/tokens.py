"""Tokens bound to pods."""

from __future__ import annotations

from typing import Any

from kubelet.client import Client

Json = dict[str, Any]


async def bound_token(client: Client, pod: Json, audience: str, life_s: int) -> str:
    """Return a token of the pod's ServiceAccount, bound to the pod. `audience` "": the API server's."""
    meta = pod["metadata"]
    account = pod["spec"].get("serviceAccountName", "default")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    spec = {"audiences": [audience] if audience else [], "expirationSeconds": life_s, "boundObjectRef": bound}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
    answer = await client.insist("POST", path, body)
    return str(answer["status"]["token"])
