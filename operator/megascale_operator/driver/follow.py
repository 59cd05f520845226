"""Follows one object by name, across failures of the API server; needs only the verbs `get` and `watch`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Final

from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.errors import ApiError, ApiUnreachableError, NotFoundError
from megascale_operator.kube.resources import Obj, Resource

log = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.25
_MAX_DELAY_S: Final = 10.0


async def follow(api: KubeApi, resource: Resource, name: str, namespace: str) -> AsyncIterator[Obj | None]:
    """Yield every observed version of the object, None while it does not exist; never ends.

    A version may be yielded more than once. While the API server is unreachable nothing is yielded, and
    requests are retried with backoff of up to 10 seconds.
    """
    tries, seen = 0, ""
    while True:
        try:
            found = await _read(api, resource, name, namespace)
            tries = 0
            version = str(found["metadata"]["resourceVersion"]) if found else ""
            if found is None or version != seen:
                seen = version
                yield found
            if found is not None:
                async with api.watch(
                    resource, namespace, field=f"metadata.name={name}", since=version
                ) as events:
                    async for event in events:
                        if event.type == "BOOKMARK":
                            continue
                        seen = str(event.object["metadata"]["resourceVersion"])
                        yield None if event.type == "DELETED" else event.object
        except (ApiError, ApiUnreachableError) as error:
            log.info("%s %s: %s", resource.kind, name, error)
        tries += 1
        await asyncio.sleep(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(tries, 8)) * random.uniform(0.5, 1.0))


async def _read(api: KubeApi, resource: Resource, name: str, namespace: str) -> Obj | None:
    try:
        return await api.get(resource, name, namespace)
    except NotFoundError:
        return None
