"""Updates a ConfigMap that has several writers: read, replace that version, and retry on a conflict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from megascale.errors import UnreachableError
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.errors import ApiError, ApiUnreachableError, ConflictError
from megascale_operator.kube.resources import CONFIG_MAPS

Change = Callable[[dict[str, str]], dict[str, str]]
_PATIENCE_S: Final = 600.0
_RETRY_S: Final = 0.25
_RETRY_LIMIT_S: Final = 5.0


async def update(api: KubeApi, name: str, namespace: str, change: Change) -> None:
    """Replace the ConfigMap's data with `change(data)`; does not write if the data stays the same.

    Raises:
        UnreachableError: all tries within ten minutes failed.
    """
    loop = asyncio.get_running_loop()
    end, delay_s = loop.time() + _PATIENCE_S, _RETRY_S
    while True:
        try:
            found = await api.get(CONFIG_MAPS, name, namespace)
            data: dict[str, str] = found.get("data") or {}
            wanted = change(dict(data))
            if wanted != data:
                await api.replace(CONFIG_MAPS, {**found, "data": wanted}, namespace)
        except ConflictError:
            delay_s = _RETRY_S
        except (ApiError, ApiUnreachableError) as error:
            if loop.time() > end:
                raise UnreachableError(f"ConfigMap {name} cannot be written: {error}") from error
            delay_s = min(_RETRY_LIMIT_S, 2 * delay_s)
        else:
            return
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
