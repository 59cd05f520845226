"""Which manifest ranks are launched with: the revision that the driver names, whatever its file says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from megascale.errors import InputError
from megascale.job import TrainingJob, load_job, read_revision, revision_of

_KEPT: Final = 4


class Manifests:
    """The node's own file, and the revisions that were fetched from the driver.

    Args:
        fetch: asks the driver for the text of a revision; raises UnreachableError.
    """

    def __init__(self, job_file: Path, fetch: Callable[[str], Awaitable[str]]) -> None:
        self._job_file, self._fetch = job_file, fetch
        self._fetched: dict[str, TrainingJob] = {}

    async def get(self, revision: str) -> TrainingJob:
        """The manifest of a revision; "" = whatever the file says, for a driver that names none.

        Raises:
            InputError: the file, or what the driver sent, cannot be read.
            UnreachableError: the node does not have the revision and the driver does not give it.
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
        """What the file says; one that cannot be read is some other revision."""
        try:
            return load_job(self._job_file)
        except InputError:
            return None
