"""The manifests that a job record refers to: the running, the waiting and the previous revision."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from megascale.core.state.record import Spec
from megascale.errors import InputError
from megascale.job import TrainingJob, canonical_json, read_revision, revision_of

MOST_BYTES: Final = 192 << 10
"""Largest compressed size of a manifest; three manifests and the record fit into one ConfigMap."""
_HELD: Final = 16


class Revisions:
    """Maps revisions to manifests; holds at most 16 and evicts the oldest.

    Args:
        kept: revision -> canonical JSON of the manifests stored with the record.
    """

    def __init__(self, kept: Mapping[str, str]) -> None:
        self._texts = dict(kept)

    def add(self, job: TrainingJob) -> str:
        """Add a manifest and return its revision.

        Raises:
            InputError: its compressed size exceeds `MOST_BYTES`.
        """
        text, revision = canonical_json(job), revision_of(job)
        size = len(zlib.compress(text.encode()))
        if size > MOST_BYTES:
            raise InputError(
                f"the manifest of {job.metadata.name} has {size} bytes when it is compressed, "
                f"expected at most {MOST_BYTES}"
            )
        self._texts.pop(revision, None)
        self._texts[revision] = text
        while len(self._texts) > _HELD:
            del self._texts[next(iter(self._texts))]
        return revision

    def text(self, revision: str) -> str | None:
        """Return the manifest's canonical JSON, None if it is not held."""
        return self._texts.get(revision)

    def job(self, revision: str) -> TrainingJob | None:
        """Return the manifest, None if it is not held.

        Raises:
            InputError: the stored text is damaged or of an unsupported version.
        """
        text = self._texts.get(revision)
        return None if text is None else read_revision(text, revision)

    def referred(self, spec: Spec) -> dict[str, str]:
        """Return the manifests that have to be stored with a record that contains `spec`."""
        named = (spec.running, spec.waiting, spec.previous)
        found = {name: self._texts.pop(name) for name in named if name is not None and name in self._texts}
        # Re-inserted as the newest, so that `add` does not evict manifests that the record refers to.
        self._texts.update(found)
        return found
