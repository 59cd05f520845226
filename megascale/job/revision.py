"""Revisions: which version of a manifest ranks run, named by the digest of its content."""

from __future__ import annotations

import hashlib
import json

from megascale.errors import InputError
from megascale.job.loader import from_mapping, to_mapping
from megascale.job.schema import TrainingJob


def canonical_json(job: TrainingJob) -> str:
    """The resolved manifest as one text, the same for files that mean the same.

    Of the metadata only the name counts: an API server changes the rest without a change of the job.
    """
    mapping = to_mapping(job) | {"metadata": {"name": job.metadata.name}}
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"))


def revision_of(job: TrainingJob) -> str:
    """SHA-256 of `canonical_json`, in hexadecimal digits."""
    return _digest(canonical_json(job))


def read_revision(text: str, revision: str) -> TrainingJob:
    """The inverse of `canonical_json`.

    Raises:
        InputError: `text` is not the manifest of that revision, or not one that this version can read.
    """
    found = _digest(text)
    if found != revision:
        raise InputError(f"revision {revision[:12]} of the manifest is damaged: its digest is {found[:12]}")
    return from_json(text)


def from_json(text: str) -> TrainingJob:
    """The manifest of a text that `canonical_json` returned.

    Raises:
        InputError: it is not JSON, or not a manifest.
    """
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the manifest is not JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise InputError("the manifest is not a JSON object")
    return from_mapping(mapping)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
