"""Finds the manifest to launch ranks with: the revision that the driver names, from file or driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from megascale.errors import InputError
from megascale.job import TrainingJob, load_job, read_revision, revision_of

_KEPT: Final = 4


class Manifests:
    """Returns manifests by revision, from the node's own file or else fetched from the driver and cached.

    Args:
        fetch: returns the canonical JSON of a revision from the driver; raises UnreachableError.
    """

    def __init__(self, job_file: Path, fetch: Callable[[str], Awaitable[str]]) -> None:
        self._job_file, self._fetch = job_file, fetch
        self._fetched: dict[str, TrainingJob] = {}

    async def get(self, revision: str) -> TrainingJob:
        """Return the manifest of a revision; "" returns the node's own file, whatever its revision.

        Raises:
            InputError: the file, or the manifest that the driver sent, cannot be parsed.
            UnreachableError: the node does not have the revision and it cannot be fetched from the driver.
        """
        if not revision:
            return await asyncio.to_thread(load_job, self._job_file)
        own = await asyncio.to_thread(self._own)
        if own is not None and revision_of(own) == revision:
            return own
        if revision not in self._fetched:
            self._fetched[revision] = read_revision(await self._fetch(revision), revision)
            while len(self._fetched) > _KEPT:
                del self._fetched[next(iter(self._fetched))]
        return self._fetched[revision]

    def _own(self) -> TrainingJob | None:
        """Load the node's own file; None if it cannot be parsed, so that the revision is fetched instead."""
        try:
            return load_job(self._job_file)
        except InputError:
            return None
