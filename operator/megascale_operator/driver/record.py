"""The job record in the ConfigMap `<job>-record`; a driver claims it by raising its term."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import logging
import random
import zlib
from collections.abc import Mapping
from typing import Any, Final

from megascale.core.api import Json
from megascale.driver.api import RECORD_VERSION, Claim, RunningDriver, check_core, checked_record
from megascale.errors import FencedError, UnreachableError
from megascale_operator.driver.follow import follow
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.errors import ApiError, ApiUnreachableError, ConflictError
from megascale_operator.kube.resources import CONFIG_MAPS, Obj
from megascale_operator.reconcile import names

log = logging.getLogger(__name__)

KEY: Final = "record.json"
REVISIONS: Final = "revisions.json"
"""Key of the compressed manifests by revision, in the same ConfigMap, so that one write stores both."""
_REMEDY: Final = "remove that key to start the job over"
_CLAIM_S: Final = 600.0
_RETRY_S: Final = 0.5
_RETRY_LIMIT_S: Final = 10.0
_CONFLICTS: Final = 8


class KubernetesRecord:
    """Implements `RecordStore` with a ConfigMap.

    Every write replaces a given resourceVersion, so it conflicts after another driver has written.
    """

    def __init__(self, api: KubeApi, namespace: str, job: str, pod: str) -> None:
        self._api, self._namespace, self._job, self._pod = api, namespace, job, pod
        self._object: Obj = {}
        self._term = 0

    async def claim(self) -> Claim:
        """Take over the record with the next higher term.

        Raises:
            FencedError: a newer pod of this job's driver has claimed the record.
            InputError: the record is damaged or of another version.
            UnreachableError: all tries within ten minutes failed.
        """
        end, delay_s = asyncio.get_running_loop().time() + _CLAIM_S, _RETRY_S
        while True:
            try:
                self._object = await self._api.get(CONFIG_MAPS, names.record_map(self._job), self._namespace)
                record = record_in(self._object)
                check_core(record.get("core"), _place(self._object), _REMEDY)
                self._refuse_later(str(record.get("pod", "")))
                self._term = int(record.get("term", 0)) + 1
                await self._store(record.get("core"), (self._object.get("data") or {}).get(REVISIONS, ""))
            except ConflictError:
                delay_s = _RETRY_S
            except (ApiError, ApiUnreachableError) as error:
                if asyncio.get_running_loop().time() > end:
                    raise UnreachableError(f"the job record cannot be claimed: {error}") from error
                delay_s = min(_RETRY_LIMIT_S, 2 * delay_s)
            else:
                return Claim(self._term, record.get("core"), revisions_in(self._object))
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))

    def _refuse_later(self, pod: str) -> None:
        """Raise FencedError if `pod`, which holds the record, is newer than this driver's pod."""
        if names.incarnation_of(pod) > names.incarnation_of(self._pod):
            raise FencedError(f"{pod} is this job's driver now, not {self._pod}")

    async def write(self, snapshot: Json, revisions: Mapping[str, str]) -> None:
        packed = _packed(tuple(revisions.items()))
        for _ in range(_CONFLICTS):
            try:
                await self._store(snapshot, packed)
            except ConflictError:
                await self._look_again()
            except (ApiError, ApiUnreachableError) as error:
                raise UnreachableError(f"ConfigMap {names.record_map(self._job)}: {error}") from error
            else:
                return
        raise UnreachableError(f"ConfigMap {names.record_map(self._job)} is changed all the time by others")

    async def _look_again(self) -> None:
        """Read the record after a conflict; raises FencedError if another driver wrote it.

        After other changes, the next write replaces the version that was read.
        """
        try:
            found = await self._api.get(CONFIG_MAPS, names.record_map(self._job), self._namespace)
        except (ApiError, ApiUnreachableError) as error:
            raise UnreachableError(f"ConfigMap {names.record_map(self._job)}: {error}") from error
        check_term(found, self._term)
        self._object = found

    async def _store(self, snapshot: Json, revisions: str) -> None:
        document = {
            "version": RECORD_VERSION,
            "job": self._job,
            "term": self._term,
            "pod": self._pod,
            "core": snapshot,
        }
        text = json.dumps(document, separators=(",", ":"))
        data = {**(self._object.get("data") or {}), KEY: text}
        if revisions:
            data[REVISIONS] = revisions
        body = {**self._object, "data": data}
        self._object = await self._api.replace(CONFIG_MAPS, body, self._namespace)

    async def confirm(self) -> None:
        await self._look_again()

    async def close(self) -> None:
        """Do nothing: the next driver takes over by raising the term, without a lock."""


class RecordWatch:
    """A background service that raises FencedError when another driver has claimed the record.

    It detects this even while this driver has nothing to write.
    """

    def __init__(self, api: KubeApi, namespace: str, job: str) -> None:
        self._api, self._namespace, self._job = api, namespace, job

    async def run(self, driver: RunningDriver) -> None:
        async for found in follow(self._api, CONFIG_MAPS, names.record_map(self._job), self._namespace):
            if found:
                check_term(found, driver.term)


def check_term(config_map: Obj, term: int) -> None:
    """Raise FencedError if the term in the record is higher than `term`."""
    found = int(record_in(config_map).get("term", 0))
    if found > term:
        raise FencedError(f"a driver of term {found} took over from {term}")


def record_in(config_map: Obj) -> dict[str, Any]:
    """Return the record as JSON values, {} for a job that never ran.

    Raises:
        InputError: the record is damaged or of another version.
    """
    text = (config_map.get("data") or {}).get(KEY, "")
    return checked_record(text, _place(config_map), _REMEDY) if text else {}


def _place(config_map: Obj) -> str:
    return f"ConfigMap {config_map['metadata']['name']}: {KEY}"


def revisions_in(config_map: Obj) -> dict[str, str]:
    """Return revision -> canonical JSON of the stored manifests; {} if there are none or they are damaged."""
    text = (config_map.get("data") or {}).get(REVISIONS, "")
    try:
        packed = json.loads(text or "{}")
        return {
            str(revision): zlib.decompress(base64.b64decode(manifest)).decode()
            for revision, manifest in packed.items()
        }
    except (ValueError, AttributeError, TypeError, zlib.error) as error:
        log.warning("ConfigMap %s: %s cannot be read: %r", config_map["metadata"]["name"], REVISIONS, error)
        return {}


@functools.lru_cache(maxsize=4)
def _packed(revisions: tuple[tuple[str, str], ...]) -> str:
    """Encode the value of `REVISIONS`; cached, because records change much more often than manifests."""
    packed = {
        revision: base64.b64encode(zlib.compress(manifest.encode())).decode()
        for revision, manifest in revisions
    }
    return json.dumps(packed, sort_keys=True) if packed else ""
