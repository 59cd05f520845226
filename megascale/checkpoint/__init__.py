"""Checkpoints on durable storage, independent of the parallel layout.

    save     every rank writes its pieces, rank 0 commits            save.py
    restore  fills pieces of any layout from a commit                restore.py
    verify   reads everything and compares checksums                 verify.py
    store    commits, manifests, pruning; does not import torch      store.py

On disk:

    <uri>/step-<S>/attempt-<A>/rank-<R>.bin    raw tensor boxes, row major, back to back
    <uri>/step-<S>/attempt-<A>/manifest.json   the index of the boxes, job and rank state
    <uri>/commits/<S>.<A>.json                 created exclusively, has the digest of the manifest

Nothing is pickled. Files without a commit are not a checkpoint.
"""

from __future__ import annotations

from megascale.checkpoint.boxes import Box, flat_range_boxes, intersect
from megascale.checkpoint.manifest import CommitRecord, Manifest
from megascale.checkpoint.pieces import Piece
from megascale.checkpoint.restore import Restored, restore
from megascale.checkpoint.save import SaveReport, save
from megascale.checkpoint.store import CheckpointStore, PruneReport, Scan
from megascale.checkpoint.verify import Damage, VerifyReport, verify

__all__ = [
    "Box",
    "CheckpointStore",
    "CommitRecord",
    "Damage",
    "Manifest",
    "Piece",
    "PruneReport",
    "Restored",
    "SaveReport",
    "Scan",
    "VerifyReport",
    "flat_range_boxes",
    "intersect",
    "restore",
    "save",
    "verify",
]
