"""The manifests that a job record refers to: what ranks run, what waits, and what there is to go back to."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from megascale.core.state.record import Spec
from megascale.errors import InputError
from megascale.job import TrainingJob, canonical_json, read_revision, revision_of

MOST_BYTES: Final = 192 << 10
"""Largest manifest, compressed: three of them and the record fit into a ConfigMap."""
_HELD: Final = 16


class Revisions:
    """Revision -> canonical JSON of the manifest; of those that no record refers to, the newest few."""

    def __init__(self, kept: Mapping[str, str]) -> None:
        self._texts = dict(kept)

    def add(self, job: TrainingJob) -> str:
        """Hold the manifest; returns its revision.

        Raises:
            InputError: it is too large to be kept beside the record.
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
        """The manifest's canonical JSON, None when it is not held."""
        return self._texts.get(revision)

    def job(self, revision: str) -> TrainingJob | None:
        """The manifest, None when it is not held.

        Raises:
            InputError: it is damaged, or of a version that cannot be read.
        """
        text = self._texts.get(revision)
        return None if text is None else read_revision(text, revision)

    def referred(self, spec: Spec) -> dict[str, str]:
        """What has to be stored together with a record that says `spec`."""
        named = (spec.running, spec.waiting, spec.previous)
        found = {name: self._texts.pop(name) for name in named if name is not None and name in self._texts}
        # Last in, last out: what is stored is not what makes room for others.
        self._texts.update(found)
        return found
