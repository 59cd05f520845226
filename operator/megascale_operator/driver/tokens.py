"""Authenticates agents by their ServiceAccount tokens, which are verified locally."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jwt

from megascale.driver.api import NotAdmittedError
from megascale_operator.driver.slots import Slots
from megascale_operator.kube.errors import ApiError, ApiUnreachableError
from megascale_operator.kube.resources import Obj

log = logging.getLogger(__name__)

JWKS_PATH: Final = "/openid/v1/jwks"
_REFETCH_S: Final = 10.0
_LEEWAY_S: Final = 30.0
_LISTED_S: Final = 2.0
_TOKEN_BYTES: Final = 16384


class Tokens:
    """Checks a token's signature, audience and expiry, and that the operator lists its pod for the node.

    Args:
        fetch: reads a path of the API server. The issuer's keys are fetched when a token has an unknown key
            id, at most every 10 seconds.
        audience: the audience that tokens must have.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Obj]], slots: Slots, audience: str) -> None:
        self._fetch, self._slots, self._audience = fetch, slots, audience
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def admit(self, token: str, node: str) -> None:
        """Raise NotAdmittedError unless the token is of the slot pod on `node`; `node` "" is refused."""
        if not node:
            raise NotAdmittedError("only agents of this job may ask; use kubectl megascale")
        uid = _pod_uid(await self._claims(token))
        if not await self._is_listed(uid, node):
            raise NotAdmittedError(f"pod {uid} is not the slot on {node} (any more, or not yet)")

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _TOKEN_BYTES:
            raise NotAdmittedError("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("kid", "")))
            options: Any = {"require": ["exp", "aud"]}
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=["RS256"], audience=self._audience, leeway=_LEEWAY_S, options=options
            )
        except jwt.PyJWTError as error:
            raise NotAdmittedError(f"the token is not good: {error}") from error
        return claims

    async def _key(self, key_id: str) -> jwt.PyJWK:
        if key_id not in self._keys:
            async with self._fetching:
                await self._refetch(key_id)
        if key_id not in self._keys:
            raise NotAdmittedError(f"no key {key_id!r} of the token's issuer is known")
        return self._keys[key_id]

    async def _refetch(self, key_id: str) -> None:
        now = asyncio.get_running_loop().time()
        if key_id in self._keys or now - self._fetched_at < _REFETCH_S:
            return
        self._fetched_at = now
        try:
            found = await self._fetch(JWKS_PATH)
        except (ApiError, ApiUnreachableError) as error:
            log.warning("keys of tokens cannot be read: %s", error)
            return
        self._keys = {str(key.get("kid", "")): jwt.PyJWK(key) for key in found.get("keys", ())}

    async def _is_listed(self, uid: str, node: str) -> bool:
        """Return whether the operator lists the pod for the node, waiting up to 2 seconds.

        The operator updates its list at most once a second, so a new pod may not be on it yet.
        """
        end = asyncio.get_running_loop().time() + _LISTED_S
        while not any(slot.uid == uid and slot.node == node for slot in self._slots.slots):
            left_s = end - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._slots.changed()
            except TimeoutError:
                return False
        return True


def _pod_uid(claims: dict[str, Any]) -> str:
    pod = (claims.get("kubernetes.io") or {}).get("pod") or {}
    uid = str(pod.get("uid", ""))
    if not uid:
        raise NotAdmittedError("the token is not bound to a pod")
    return uid
