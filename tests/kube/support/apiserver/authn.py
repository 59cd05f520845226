"""Authentication: static bearer tokens and ServiceAccount tokens (RS256), with OpenID discovery."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from apiserver.errors import ApiError, Json

ISSUER = "https://kubernetes.default.svc.cluster.local"
_MOST_CACHED = 10_000


@dataclass(frozen=True)
class User:
    """An authenticated user."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Json = field(default_factory=dict, hash=False)


def service_account_user(namespace: str, name: str, uid: str = "", extra: Json | None = None) -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups, uid, extra or {})


Exists = Callable[[str, str, str, str], bool]
"""(resource, namespace, name, uid) -> whether the object exists with that uid."""


class Tokens:
    """Issues and verifies bearer tokens. `exists` returns whether the objects a token is bound to exist."""

    def __init__(self, exists: Exists) -> None:
        self._exists = exists
        self._static: dict[str, User] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._verified: dict[str, Json] = {}
        numbers = self._key.public_key().public_numbers()
        self.key_id = hashlib.sha256(str(numbers.n).encode()).hexdigest()[:16]

    def add_static(self, user: User) -> str:
        """Return a token for a user outside the cluster, such as the administrator."""
        token = secrets.token_urlsafe(24)
        self._static[token] = User(user.name, (*user.groups, "system:authenticated"))
        return token

    def issue(
        self, namespace: str, account: Json, audiences: list[str], life_s: int, bound: Json | None
    ) -> str:
        """Return a token of a ServiceAccount object; `bound`: the claims of the pod it is bound to."""
        now = int(time.time())
        name, uid = account["metadata"]["name"], account["metadata"]["uid"]
        kubernetes: Json = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        claims = {
            "aud": audiences or [ISSUER],
            "exp": now + life_s,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "jti": secrets.token_hex(16),
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "kubernetes.io": kubernetes | (bound or {}),
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self.key_id})

    def authenticate(self, token: str) -> User:
        """Raises: 401 for a token that is unknown, expired, for another audience, or whose pod is gone."""
        static = self._static.get(token)
        if static:
            return static
        claims = self._verified.get(token) or self._verify(token)
        if claims["exp"] < time.time():
            raise unauthorized()
        inner = claims["kubernetes.io"]
        namespace, account, pod = inner["namespace"], inner["serviceaccount"], inner.get("pod")
        if not self._exists("serviceaccounts", namespace, account["name"], account["uid"]):
            raise unauthorized()
        if pod and not self._exists("pods", namespace, pod["name"], pod["uid"]):
            raise unauthorized()
        extra: dict[str, Any] = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]}
        if pod:
            extra |= {"authentication.kubernetes.io/pod-name": [pod["name"]]}
            extra |= {"authentication.kubernetes.io/pod-uid": [pod["uid"]]}
        return service_account_user(namespace, account["name"], account["uid"], extra)

    def _verify(self, token: str) -> Json:
        try:
            claims: Json = jwt.decode(
                token, self._key.public_key(), ["RS256"], audience=ISSUER, issuer=ISSUER
            )
        except jwt.InvalidTokenError:
            raise unauthorized() from None
        if len(self._verified) >= _MOST_CACHED:
            self._verified.clear()
        self._verified[token] = claims
        return claims

    def jwks(self) -> Json:
        numbers = self._key.public_key().public_numbers()
        key = {"use": "sig", "kty": "RSA", "kid": self.key_id, "alg": "RS256"}
        return {"keys": [key | {"n": _base64(numbers.n), "e": _base64(numbers.e)}]}

    def configuration(self, base_url: str) -> Json:
        return {
            "issuer": ISSUER,
            "jwks_uri": f"{base_url}/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def _base64(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
